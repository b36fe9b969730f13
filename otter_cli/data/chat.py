"""Columns of messages as the texts that a tokenizer's chat template makes of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from otter_cli.core.errors import OtterError
from otter_cli.data.chat_template import ChatText, chat, require_template
from otter_cli.data.messages import Message, read_messages, shared_question
from otter_cli.data.records import Place, Record, read_records


@dataclass(frozen=True)
class Chat:
    """A table whose `columns` hold messages, [{"role": ..., "content": ...}, ...].

    Each becomes a `ChatText`: the whole dialogue, with the token ids that transformers gives it.
    The messages of the column `context`, where given, come before each of them; a plain text is a
    user's message there, and the assistant's in `columns`.
    """

    place: Place
    tokenizer: Any
    columns: Sequence[str]
    context: str | None = None

    def __str__(self) -> str:
        return str(self.place)

    def records(self) -> Iterator[Record]:
        try:
            require_template(self.tokenizer)
        except OtterError as error:
            raise OtterError(
                f"{self}: chat is asked for, and {error.what}", hint=error.hint
            ) from error
        for record in read_records(self.place):
            yield self._rendered(record)

    def _rendered(self, record: Record) -> Record:
        before = [] if self.context is None else read_messages(record, self.context, "user")
        dialogues = [self._dialogue(record, column, before) for column in self.columns]
        shared = before or (shared_question(dialogues) if len(dialogues) > 1 else [])
        start = str(self._render(record, shared, generate=True)) if shared else ""
        values = dict(record.values)
        for column, messages in zip(self.columns, dialogues, strict=True):
            text = self._render(record, messages, prompt=start)
            if before and not text.startswith(start):
                raise record.error(
                    f"the chat template writes {self.context!r} otherwise before {column!r}",
                    "put the whole dialogue into the columns, and leave prompt out",
                )
            values[column] = text
        if self.context is not None:
            values[self.context] = start
        return replace(record, values=values)

    def _dialogue(self, record: Record, column: str, before: list[Message]) -> list[Message]:
        messages = read_messages(record, column, "assistant" if before else None)
        # Some data sets repeat the prompt in its answers.
        repeated = len(messages) > len(before) and messages[: len(before)] == before
        return messages if repeated else [*before, *messages]

    def _render(
        self, record: Record, messages: list[Message], generate: bool = False, prompt: str = ""
    ) -> ChatText:
        try:
            return chat(self.tokenizer, messages, generate=generate, prompt=prompt)
        except OtterError as error:
            raise record.error(error.what, error.hint) from error
