"""Prompts, in the forms that benchmarks publish them in."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from otter_cli.core.errors import OtterError
from otter_cli.data.lines import format_of, numbered_lines
from otter_cli.data.preference import shared_dialogue
from otter_cli.data.records import Record, read_rows, require_rows

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


def read_prompts(
    path: str | Path,
    *,
    column: str | None = None,
    template: str = _SLOT,
    limit: int | None = None,
) -> list[Prompt]:
    """Prompts from rows or, in a txt file, from lines.

    Without `column` a row's form is recognised: preference pairs (the dialogue that both share),
    RealToxicityPrompts, Spec-Bench (its first turn), `prompt`, `text`. `template` holds {text},
    e.g. "\\n\\nHuman: {text}\\n\\nAssistant:"; a pair's dialogue has its own form and skips it.
    """
    if _SLOT not in template:
        raise OtterError(f"prompt template {template!r} has no {_SLOT}", hint=f"put {_SLOT} in it")

    def parse(record: Record) -> Prompt:
        if column is None and {"chosen", "rejected"} <= record.values.keys():
            return Prompt(_dialogue(record), record.line)
        text = record.text(column) if column else _recognised(record)
        category = record.values.get("category") or _toxic(record)
        return Prompt(template.replace(_SLOT, text), record.line, str(category))

    if format_of(Path(path)) != "txt":
        return read_rows(path, parse, limit=limit, at_least=1)
    lines = [(n, line.rstrip("\r\n")) for n, line in numbered_lines(Path(path)) if line.strip()]
    require_rows(path, len(lines[:limit]), at_least=1)
    return [Prompt(template.replace(_SLOT, line), number) for number, line in lines[:limit]]


def _toxic(record: Record) -> str:
    """RealToxicityPrompts are told apart at 0.5 by the score of the prompt, where a row has one."""
    prompt = record.values.get("prompt")
    score = prompt.get("toxicity") if isinstance(prompt, Mapping) else None
    if not isinstance(score, int | float):
        return ""
    return "toxic" if score >= 0.5 else "non-toxic"


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
