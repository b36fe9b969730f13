"""Prompts, in the forms that benchmarks publish them in."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from otter_cli.core.errors import OtterError
from otter_cli.data.drawing import LimitedTable, RowDraw, toxicity_of
from otter_cli.data.lines import format_of, numbered_lines
from otter_cli.data.preference import shared_dialogue
from otter_cli.data.records import Place, Record, read_rows

_SLOT = "{text}"


@dataclass(frozen=True)
class Prompt:
    """`text` is ready for the tokenizer; `line` (from 1) names the prompt within its file."""

    text: str
    line: int
    category: str = ""

    @property
    def identity(self) -> tuple[str, ...]:
        """What must not occur in both training and test data."""
        return (self.text,)


@dataclass(frozen=True)
class Prompts:
    """The prompts of a file, and which of its rows a limit kept."""

    rows: list[Prompt]
    drawn: RowDraw | None = None


def read_prompts(
    path: str | Path, *, column: str | None = None, template: str = _SLOT
) -> list[Prompt]:
    """Prompts from rows or, in a txt file, from lines.

    Without `column` a row's form is recognised: preference pairs (the dialogue that both share),
    RealToxicityPrompts, Spec-Bench (its first turn), `prompt`, `text`. `template` holds {text},
    e.g. "\\n\\nHuman: {text}\\n\\nAssistant:"; a pair's dialogue has its own form and skips it.
    """
    return draw_prompts(path, column=column, template=template).rows


def draw_prompts(
    path: str | Path,
    *,
    column: str | None = None,
    template: str = _SLOT,
    limit: int | None = None,
    seed: int = 0,
) -> Prompts:
    """As `read_prompts`; of more than `limit` prompts a draw by `seed`, across categories."""
    if _SLOT not in template:
        raise OtterError(f"prompt template {template!r} has no {_SLOT}", hint=f"put {_SLOT} in it")
    place: Place = Path(path)
    if format_of(Path(path)) == "txt":
        place, column = _Lines(Path(path)), "text"

    def parse(record: Record) -> Prompt:
        if column is None and {"chosen", "rejected"} <= record.values.keys():
            return Prompt(_dialogue(record), record.line)
        text = record.text(column) if column else _recognised(record)
        category = record.values.get("category") or toxicity_of(record)
        return Prompt(template.replace(_SLOT, text), record.line, str(category))

    if limit is None:
        return Prompts(read_rows(place, parse, at_least=1))
    table = LimitedTable(place, limit, seed)
    return Prompts(read_rows(table, parse, at_least=1), table.drawn)


@dataclass(frozen=True)
class _Lines:
    """A txt file, a prompt a line."""

    path: Path

    def __str__(self) -> str:
        return str(self.path)

    def records(self) -> Iterator[Record]:
        for number, line in numbered_lines(self.path):
            if line.strip():
                yield Record(self.path, number, {"text": line.rstrip("\r\n")})


def _recognised(record: Record) -> str:
    values = record.values
    if "turns" in values:
        return record.text("turns.0")
    if isinstance(values.get("prompt"), Mapping):
        return record.text("prompt.text")
    for column in ("prompt", "text"):
        if column in values:
            return record.text(column)
    raise record.error(
        f"no prompt in columns {', '.join(map(repr, values))}",
        "name the column: prompts are looked for in prompt, text, turns, and chosen with rejected",
    )


def _dialogue(record: Record) -> str:
    dialogue = shared_dialogue(record.text("chosen"), record.text("rejected"))
    if not dialogue:
        raise record.error(
            "'chosen' and 'rejected' share no dialogue up to an 'Assistant:' turn",
            "name the column that holds the prompt",
        )
    return dialogue
