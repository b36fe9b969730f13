"""Columns of messages as the text that a tokenizer's chat template makes of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from otter_cli.core.errors import OtterError
from otter_cli.data.records import Place, Record, read_records

Messages = list[dict[str, str]]


@dataclass(frozen=True)
class Chat:
    """A table whose `columns` hold messages, [{"role": ..., "content": ...}, ...].

    Those of the column `context`, where given, come before each of them; a plain text counts as a
    user's message there, and as the assistant's in `columns`.
    """

    place: Place
    tokenizer: Any
    columns: Sequence[str]
    context: str | None = None

    def __str__(self) -> str:
        return str(self.place)

    def records(self) -> Iterator[Record]:
        if getattr(self.tokenizer, "chat_template", None) is None:
            raise OtterError(
                f"{self}: chat is asked for, and the tokenizer has no chat template",
                hint="leave chat out, or give the base's tokenizer_config.json a chat_template",
            )
        for record in read_records(self.place):
            values, before = dict(record.values), self._context(record)
            start = self._render(record, before, generate=True) if before else ""
            for column in self.columns:
                messages = before + _messages(record, column, "assistant" if before else None)
                whole = self._render(record, messages)
                if not whole.startswith(start):
                    raise record.error(
                        f"the chat template writes {self.context!r} otherwise before {column!r}",
                        "put the whole dialogue into the columns, and leave prompt out",
                    )
                values[column] = whole.removeprefix(start)
            if self.context is not None:
                values[self.context] = start
            yield replace(record, values=values)

    def _context(self, record: Record) -> Messages:
        return [] if self.context is None else _messages(record, self.context, "user")

    def _render(self, record: Record, messages: Messages, generate: bool = False) -> str:
        from jinja2 import TemplateError

        try:
            text: str = self.tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=generate
            )
        except TemplateError as error:
            raise record.error(f"the chat template refuses it: {error}", "check roles") from error
        # The encoder puts BOS before every text, and once is enough.
        return text.removeprefix(self.tokenizer.bos_token or "")


def _messages(record: Record, column: str, role: str | None) -> Messages:
    """The messages of a column; of a plain text one of `role`."""
    value = record.value(column)
    if isinstance(value, str) and role is not None:
        return [{"role": role, "content": record.text(column)}]
    good = isinstance(value, list) and value and all(map(_is_message, value))
    if not good:
        raise record.error(
            f"{column!r} holds no messages",
            'with chat: true it is a list like [{"role": "user", "content": "Hello"}]',
        )
    return list(value)


def _is_message(value: Any) -> bool:
    return isinstance(value, dict) and all(
        isinstance(value.get(key), str) for key in ("role", "content")
    )
