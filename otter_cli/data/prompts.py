"""Prompts, in the forms of published benchmarks.

The columns of a row show its form: text, messages, turns or a preference pair."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from otter_cli.core.errors import OtterError
from otter_cli.data import chat_template
from otter_cli.data.chat_template import (
    Message,
    Messages,
    last_text,
    read_messages,
    read_prompt,
    shared_question,
)
from otter_cli.data.columns import PROMPT_COLUMNS, is_messages
from otter_cli.data.pairs import shared_dialogue
from otter_cli.data.splits import LimitedTable, RowDraw, toxicity_of
from otter_cli.data.tables import Record, TableLike, format_of, numbered_lines, read_rows

_TEXT_SLOT = "{text}"


@dataclass(frozen=True)
class Prompt:
    """`text` is ready for the tokenizer. `line` (from 1) names the prompt within its file.
    `messages`: the dialogue to answer, where the file holds messages; `text` is then the text of
    the last one."""

    text: str
    line: int
    category: str = ""
    messages: Messages = ()

    @property
    def identity(self) -> tuple[str, ...]:
        return (self.text,)

    def written(self, tokenizer: Any, chat: bool, file: object = None) -> str:
        """The text for an encoder; with `chat` a `ChatText` up to the beginning of the answer, in
        which a plain text is a user's message. Raises OtterError, with file and line."""
        where = "the prompt" if file is None else f"{file}, line {self.line}"
        if not chat:
            if self.messages:
                raise OtterError(
                    f"{where}: the prompt is a list of messages",
                    hint="they go through the base's chat template: give --chat, or leave --raw "
                    "out; a base without a template needs prompts that are text",
                )
            return self.text
        try:
            return chat_template.render_chat(
                tokenizer, self.messages or chat_template.user_turn(self.text), generate=True
            )
        except OtterError as error:
            raise OtterError(f"{where}: {error.what}", hint=error.hint) from error


@dataclass(frozen=True)
class DrawnPrompts:
    """The prompts of a file, and which of its rows a limit kept."""

    rows: list[Prompt]
    drawn: RowDraw | None = None


def read_prompts(
    path: str | Path, *, column: str | None = None, template: str = _TEXT_SLOT
) -> list[Prompt]:
    """Prompts from rows or, in a txt file, from lines.

    Without `column` the form of a row is recognised: preference pairs (their shared dialogue),
    RealToxicityPrompts, Spec-Bench (the first turn), `prompt`, `text`, `messages`, or another usual
    name of a prompt (`question`, `instruction`, `query`, `input`). `template` holds {text}, e.g.
    "\\n\\nHuman: {text}\\n\\nAssistant:". Dialogues of pairs and messages do not use it.
    """
    return draw_prompts(path, column=column, template=template).rows


def draw_prompts(
    path: str | Path,
    *,
    column: str | None = None,
    template: str = _TEXT_SLOT,
    limit: int | None = None,
    seed: int = 0,
) -> DrawnPrompts:
    """As `read_prompts`; at most `limit` prompts, drawn by `seed` across categories."""
    if _TEXT_SLOT not in template:
        raise OtterError(
            f"prompt template {template!r} has no {_TEXT_SLOT}", hint=f"put {_TEXT_SLOT} in it"
        )
    table: TableLike = Path(path)
    if format_of(Path(path)) == "txt":
        table, column = _LineTable(Path(path)), "text"

    def parse(record: Record) -> Prompt:
        if messages := _prompt_messages(record, column):
            category = str(record.values.get("category") or "")
            return Prompt(last_text(messages), record.line, category, messages)
        if column is None and (dialogue := _shared_dialogue_of_pair(record)):
            return Prompt(dialogue, record.line)
        text = record.text(column) if column else _recognised_text(record)
        category = record.values.get("category") or toxicity_of(record)
        return Prompt(template.replace(_TEXT_SLOT, text), record.line, str(category))

    if limit is None:
        return DrawnPrompts(read_rows(table, parse, at_least=1))
    limited = LimitedTable(table, limit, seed)
    return DrawnPrompts(read_rows(limited, parse, at_least=1), limited.drawn)


@dataclass(frozen=True)
class _LineTable:
    """A txt file with one prompt per line."""

    path: Path

    def __str__(self) -> str:
        return str(self.path)

    def records(self) -> Iterator[Record]:
        for number, line in numbered_lines(self.path):
            if line.strip():
                yield Record(self.path, number, {"text": line.rstrip("\r\n")})


def _prompt_messages(record: Record, column: str | None) -> list[Message]:
    """The dialogue of a row that holds messages; of a pair of dialogues, their shared beginning."""
    values = record.values
    if column is not None:
        return read_prompt(record, column) if is_messages(record.value(column)) else []
    for name in ("messages", "prompt"):
        if values.get(name) == []:
            raise record.error(f"{name!r} is an empty list", "a dialogue has at least one message")
        if is_messages(values.get(name)):
            return read_prompt(record, name)
    sides = [name for name in ("chosen", "rejected") if is_messages(values.get(name))]
    if len(sides) < 2:
        return []
    shared = shared_question([read_messages(record, name) for name in sides])
    if not shared:
        raise record.error(
            "'chosen' and 'rejected' share no message to answer",
            "name the column that holds the prompt",
        )
    return shared


def _recognised_text(record: Record) -> str:
    values = record.values
    if "turns" in values:
        return record.text("turns.0")
    if isinstance(values.get("prompt"), Mapping):
        return record.text("prompt.text")
    for column in ("prompt", "text"):
        if column in values:
            return record.text(column)
    usual = [name for name in PROMPT_COLUMNS if name in values]
    if len(usual) > 1:
        raise record.error(
            f"columns {' and '.join(map(repr, usual))} could both be the prompt",
            f"name the one that is meant: --column {usual[0]}",
        )
    if usual:
        return record.text(usual[0])
    if {"chosen", "rejected"} <= values.keys():
        raise record.error(
            "'chosen' and 'rejected' share no dialogue up to an 'Assistant:' turn",
            "name the column that holds the prompt",
        )
    raise record.error(
        f"no prompt in columns {', '.join(map(repr, values))}",
        f"name the column: prompts are looked for in text, turns, messages, "
        f"{', '.join(PROMPT_COLUMNS)}, "
        "and chosen with rejected",
    )


def _shared_dialogue_of_pair(record: Record) -> str:
    """The shared beginning of a pair of dialogues; "" for other rows."""
    if not {"chosen", "rejected"} <= record.values.keys():
        return ""
    return shared_dialogue(record.text("chosen"), record.text("rejected"))
