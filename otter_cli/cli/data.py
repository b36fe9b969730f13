"""`otter data`: shows what `otter train` would read from a data file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from otter_cli.cli.command import Outcome, verb, verb_app
from otter_cli.cli.data_options import ChosenColumn, PromptColumn, RejectedColumn, TextColumn
from otter_cli.cli.tables import facts_table

if TYPE_CHECKING:
    from rich.console import RenderableType

    from otter_cli.data.summary import DataSummary


app = verb_app(
    help="Look at data files: rows, lengths, classes, duplicates.",
    example="otter data check pairs.jsonl --base grafted",
)


@app.callback()
def _group() -> None:
    """An app of one command has no subcommand; this callback makes `check` one."""


@verb(
    app,
    example="""\
    otter data check pairs.jsonl
    otter data check comments.csv --base grafted --text comment --label toxic""",
)
def check(
    file: Annotated[Path, typer.Argument(help="jsonl, csv, tsv, parquet, txt, or one with .gz")],
    base: Annotated[
        Path | None,
        typer.Option("--base", help="a checkpoint or graft whose tokenizer counts tokens"),
    ] = None,
    max_length: Annotated[
        int | None,
        typer.Option("--max-length", min=3, help="count the texts longer than this many tokens"),
    ] = None,
    text: TextColumn = None,
    label: Annotated[
        str | None, typer.Option("--label", help="column of labels", rich_help_panel="Data")
    ] = None,
    prompt: PromptColumn = None,
    chosen: ChosenColumn = None,
    rejected: RejectedColumn = None,
) -> Outcome:
    """Show what `otter train` reads from a file: columns, lengths, classes, duplicates."""
    from dataclasses import asdict

    from otter_cli.data.summary import summarise

    tokenizer = None
    if base is not None:
        from otter_cli.model.load import load_tokenizer

        tokenizer = load_tokenizer(base)
    columns = {
        "text": text, "label": label, "prompt": prompt, "chosen": chosen, "rejected": rejected
    }  # fmt: skip
    named = {use: column for use, column in columns.items() if column is not None}
    summary = summarise(file, tokenizer, named=named, max_length=max_length)
    return Outcome(asdict(summary), view=lambda: _view(summary))


def _view(summary: DataSummary) -> RenderableType:
    from rich.console import Group
    from rich.text import Text

    return Group(Text(str(summary.path), style="bold"), facts_table(_summary_rows(summary)))


def _summary_rows(summary: DataSummary) -> list[tuple[str, str]]:
    texts = 2 * summary.rows if summary.kind == "pairs" else summary.rows
    lengths = ", ".join(f"{name} {value:,}" for name, value in summary.lengths.items())
    rows = [
        ("read as", summary.kind),
        ("rows", f"{summary.rows:,}"),
        ("columns", ", ".join(_column_text(summary, use) for use in summary.columns)),
        ("ignored", ", ".join(summary.ignored) or "none"),
        ("messages", "yes, by the base's chat template" if summary.chat else "no"),
        (summary.unit, lengths),
    ]
    if summary.max_length is not None:
        rows.append(("cut", f"{summary.cut:,} of {texts:,} texts at {summary.max_length}"))
    rows.append(("duplicates", f"{summary.duplicates:,} rows"))
    if summary.kind == "pairs":
        rows.append(("identical", f"{summary.identical:,} pairs: these are left out"))
    if summary.classes:
        shown = ", ".join(f"{name}: {count:,}" for name, count in summary.classes.items())
        rows.append(("labels", shown))
    if summary.mapping:
        numbers = ", ".join(f"{value} = {number:g}" for value, number in summary.mapping.items())
        rows.append(("stand for", numbers))
    elif summary.mapping is None:
        rows.append(("stand for", "not clear: give a number from 0 to 1 for each, by --map"))
    return [*rows, ("train with", _train_command(summary))]


def _column_text(summary: DataSummary, use: str) -> str:
    why = summary.understood.get(use)
    return f"{use}: {summary.columns[use]}" + (f" ({why})" if why else "")


def _train_command(summary: DataSummary) -> str:
    """The command that reads the file in this way, with every option that needs no guess."""
    import shlex

    file = shlex.quote(str(summary.path))
    if summary.kind == "prompts":
        return f"otter train OUT --teacher SCORER --prompts {file}"
    named = [
        f"--{use} {shlex.quote(column)}"
        for use, column in summary.columns.items()
        if use in summary.understood or column != use
    ]
    if summary.kind == "labels" and summary.mapping != {}:
        values = list(summary.classes)[:8]
        mapping = summary.mapping or dict.fromkeys(values, None)
        named += [
            f"--map {shlex.quote(value)}={'NUMBER' if number is None else f'{number:g}'}"
            for value, number in mapping.items()
        ]
    return " ".join([f"otter train OUT --{summary.kind} {file}", *named])
