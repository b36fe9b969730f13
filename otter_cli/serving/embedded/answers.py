"""The bodies of answers: whole, or in chunks for a stream."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from otter_cli.core.errors import OtterError
from otter_cli.serving.embedded.choice_text import (
    ChoicePart,
    ChoiceText,
    chat_logprobs,
    completion_logprobs,
)
from otter_cli.serving.embedded.model_thread import Event, RowProgress
from otter_cli.serving.signal_schema import choice_fields, refusal_body

if TYPE_CHECKING:
    from otter_cli.signals.config import SignalConfig


# The type of an error that is not the request's fault.
SERVER_ERROR = "server_error"


@dataclass
class AnswerWriter:
    """Writes the answer to one request, whose rows are `choices`."""

    model: str
    chat: bool
    choices: list[ChoiceText]
    prompt_tokens: int
    signals: Mapping[str, SignalConfig]
    include_usage: bool = False
    created: int = field(default_factory=lambda: int(time.time()))
    id: str = field(default_factory=lambda: uuid.uuid4().hex)

    def __post_init__(self) -> None:
        self.id = f"{'chatcmpl' if self.chat else 'cmpl'}-{self.id}"

    @property
    def usage(self) -> dict[str, int]:
        written = sum(choice.count for choice in self.choices)
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": written,
            "total_tokens": self.prompt_tokens + written,
        }

    def add(self, progress: RowProgress) -> ChoicePart:
        """The part of a choice that new tokens of its row make."""
        return self.choices[progress.index].add(progress.tokens, progress.ended)

    def whole(self, parts: Sequence[list[ChoicePart]]) -> dict[str, Any]:
        """The answer to a request without `stream`, of all parts of each choice."""
        choices = [self._whole_choice(index, each) for index, each in enumerate(parts)]
        kind = "chat.completion" if self.chat else "text_completion"
        return {**self._head(kind), "choices": choices, "usage": self.usage}

    def _whole_choice(self, index: int, parts: Sequence[ChoicePart]) -> dict[str, Any]:
        text = "".join(part.text for part in parts)
        joined = ChoicePart(
            text,
            [token for part in parts for token in part.tokens],
            {name: [v for part in parts for v in part.signals[name]] for name in parts[-1].signals},
            parts[-1].finish_reason,
            parts[-1].stop_reason,
        )
        message = {"role": "assistant", "content": text, "refusal": None}
        content = {"message": message} if self.chat else {"text": text}
        return {"index": index, **content, **self._details(index, joined)}

    def _details(self, index: int, part: ChoicePart) -> dict[str, Any]:
        logprobs = None
        if self.choices[index].logprobs and part.tokens:
            form = chat_logprobs if self.chat else completion_logprobs
            logprobs = form(part.tokens)
        return {
            "logprobs": logprobs,
            "finish_reason": part.finish_reason,
            **choice_fields(part.signals, self.signals, part.stop_reason),
        }

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}

    def _chunk(self, choices: list[dict[str, Any]], usage: Any = None) -> str:
        kind = "chat.completion.chunk" if self.chat else "text_completion"
        body = {**self._head(kind), "choices": choices}
        if self.include_usage:
            body["usage"] = usage
        return sse(body)

    def _chunks_of(self, index: int, part: ChoicePart) -> list[str]:
        """The chunk of new tokens, and the chunk that ends the choice."""
        chunks = []
        # The last chunk has what ends the choice, and no token.
        finish, stop = part.finish_reason, part.stop_reason
        part.finish_reason = part.stop_reason = None
        if part.text or part.tokens or any(part.signals.values()):
            chunks.append(
                self._chunk([{**self._piece(index, part.text), **self._details(index, part)}])
            )
        if finish is not None:
            end = {"logprobs": None, "finish_reason": finish, **choice_fields({}, {}, stop)}
            chunks.append(self._chunk([{**self._piece(index, ""), **end}]))
        return chunks

    def _piece(self, index: int, text: str) -> dict[str, Any]:
        """The text of a chunk's choice."""
        delta = {"content": text} if text else {}
        return {"index": index, **({"delta": delta} if self.chat else {"text": text})}

    async def stream(self, events: AsyncIterator[Event]) -> AsyncIterator[str]:
        """The answer as server-sent events, for `events` of which none has been read yet."""
        if self.chat:
            for index in range(len(self.choices)):
                first = {"role": "assistant", "content": ""}
                head = {"index": index, "delta": first, "logprobs": None, "finish_reason": None}
                yield self._chunk([head])
        async for event in events:
            if isinstance(event, OtterError):
                yield sse(refusal_body(event, SERVER_ERROR))
                return
            for chunk in self._chunks_of(event.index, self.add(event)):
                yield chunk
        if self.include_usage:
            yield self._chunk([], self.usage)
        yield "data: [DONE]\n\n"


def sse(body: Mapping[str, Any]) -> str:
    """One server-sent event."""
    return f"data: {json.dumps(body, allow_nan=False, separators=(',', ':'))}\n\n"
