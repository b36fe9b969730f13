"""Which columns of a data file `otter train` reads, where the user has not named them all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from otter_cli.core.console import say

if TYPE_CHECKING:
    from otter_cli.cli.data_options import DataOptions
    from otter_cli.signals.config import SignalConfig


def understood_columns(options: DataOptions, signals: Sequence[SignalConfig]) -> dict[str, Any]:
    """The columns and the mapping of the data's source: those that are named, and guesses for the
    others, which are printed. Usual names are left to the source itself. Raises OtterError where a
    column is not clear."""
    from otter_cli.data.columns import sample_rows

    assert options.file is not None
    columns = _named(options)
    if options.file.suffix == ".txt":
        return columns
    rows = sample_rows(options.file)
    if options.kind == "pairs":
        guessed = _guess_pair(options, columns, rows)
    elif options.kind == "labels":
        guessed = _guess_text(options, columns, rows, "text")
        guessed += _guess_labels(options, columns, rows, signals)
    else:
        guessed = _guess_text(options, columns, rows, "column")
    if guessed:
        say(f"{options.file}: {'; '.join(guessed)}. Options of the panel Data change that.")
    return columns


def _named(options: DataOptions) -> dict[str, Any]:
    columns: dict[str, Any] = {}
    for key in ("text", "prompt", "chosen", "rejected"):
        if getattr(options, key) is not None:
            columns["column" if (options.kind, key) == ("texts", "text") else key] = getattr(
                options, key
            )
    if options.label:
        columns["labels"] = list(options.label)
    if options.map:
        columns["mapping"] = options.mapping
    return columns


def _guess_pair(options: DataOptions, columns: dict[str, Any], rows: Any) -> list[str]:
    from otter_cli.data.columns import column_names
    from otter_cli.data.guess import guess_pair, unclear_columns

    assert options.file is not None
    wanted = {columns.get("chosen", "chosen"), columns.get("rejected", "rejected")}
    if wanted <= set(column_names(rows)) or not rows:
        return []
    pair = guess_pair(rows)
    if pair is None or {"chosen", "rejected"} & columns.keys():
        # A file in which only some rows lack a column is refused with the line.
        if wanted & set(column_names(rows)):
            return []
        raise unclear_columns(
            options.file, rows, "which column is the better text, and which the worse",
            "--chosen COLUMN --rejected COLUMN",
        )  # fmt: skip
    columns["chosen"], columns["rejected"] = pair
    return [f"the better text is {pair[0]!r}, the worse {pair[1]!r}"]


def _guess_text(options: DataOptions, columns: dict[str, Any], rows: Any, key: str) -> list[str]:
    from otter_cli.data.columns import usual_text
    from otter_cli.data.guess import guess_text, unclear_columns

    assert options.file is not None
    if key in columns or not rows or usual_text(key, columns, rows):
        return []
    guess = guess_text(rows)
    if guess is None:
        options_text = "--text COLUMN" + (" --label COLUMN" if options.kind == "labels" else "")
        raise unclear_columns(options.file, rows, "which column is the text", options_text)
    columns[key] = guess.column
    return [f"the text is {guess.column!r} ({guess.why})"]


def _guess_labels(
    options: DataOptions, columns: dict[str, Any], rows: Any, signals: Sequence[SignalConfig]
) -> list[str]:
    from otter_cli.data.columns import LABEL_COLUMNS, column_names, usual_column
    from otter_cli.data.guess import guess_label, unclear_columns

    assert options.file is not None
    names = set(column_names(rows))
    own = {name for s in signals for name in (s.name, *s.labels)}
    said: list[str] = []
    if "labels" not in columns and rows and not own & names:
        usual = usual_column("labels", LABEL_COLUMNS, rows, text=False)
        if usual is None:
            text = columns.get("text", "text")
            guess = guess_label(rows, text, [s.name for s in signals])
            if guess is None:
                raise unclear_columns(
                    options.file, rows, "which column is the label", "--label COLUMN"
                )
            columns["labels"] = [guess.column]
            said = [f"the label is {guess.column!r} ({guess.why})"]
        else:
            columns["labels"] = [usual]
    label = columns.get("labels", [])
    # A signal of several classes reads their names itself.
    single = all(s.size == 1 or s.kind == "vocabulary" for s in signals)
    if len(label) == 1 and single and "mapping" not in columns and label[0] in names:
        said += _guess_mapping(options, columns, label[0], signals)
    return said


def _guess_mapping(
    options: DataOptions, columns: dict[str, Any], label: str, signals: Sequence[SignalConfig]
) -> list[str]:
    from otter_cli.data.guess import guess_mapping, label_counts, unclear_labels
    from otter_cli.data.tables import read_records

    assert options.file is not None
    counts = label_counts(
        record.values[label] for record in read_records(options.file) if label in record.values
    )
    good_is_high = all(s.kind != "classes" for s in signals)
    names = [s.name for s in signals]
    mapping = guess_mapping(list(counts), label, good_is_high=good_is_high, signals=names)
    if mapping is None:
        raise unclear_labels(options.file, label, counts, signals[0].name)
    if not mapping:
        return []
    columns["mapping"] = mapping
    return [", ".join(f"{value} = {number:g}" for value, number in mapping.items())]
