"""From vLLM's answer to the fields of `serving/signal_schema.py`, choice by choice.

What vLLM returns beside a token was read at the state that chose the token, so it belongs to the
text before it. The schema's value at a token is that of the text up to it. So a token's value comes
with the next token, a chunk of a stream is held until then, and the value of the whole text is
read by one more step of the engine (`LastRow`). An answer that `stop_when` ended needs none: the
engine's end token carries it. This module imports neither torch nor vLLM.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from otter_cli.serving.signal_schema import STOP_WHEN_FINISH, choice_fields
from otter_cli.serving.vllm.requests import (
    FIRST_VIRTUAL_ID,
    LOWEST_LOGPROB,
    SignalOutputs,
    StopBound,
    returned_value,
    virtual_id,
)
from otter_cli.serving.vllm.translation import AnswerPlan

# The numbers beside one token, by place in SignalOutputs.outputs, as the heads give them. vLLM
# clips them at LOWEST_LOGPROB, and has null for NaN.
Row = Mapping[int, float | None]
Json = dict[str, Any]
# The row after the last token, for the ids of a whole text; empty where the engine has no room.
LastRow = Callable[[list[int]], Awaitable[Row]]


@dataclass
class Piece:
    """A choice of a chunk, or of a whole answer, with the range of its tokens in the choice."""

    event: Json
    choice: Json
    start: int
    end: int


@dataclass
class ChoiceSignals:
    """One choice as it grows. `rows[i]` was read where token i was chosen."""

    plan: AnswerPlan
    outputs: SignalOutputs
    streamed: bool
    tokens: list[int] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    held: list[Piece] = field(default_factory=list)
    ended_by: StopBound | None = None
    # Tokens that the engine added to end the answer, and that are left out of it.
    dropped: int = 0

    def take(self, event: Json, choice: Json) -> None:
        """Takes the numbers and ids out of a choice, and holds it."""
        start = len(self.tokens)
        self.tokens += choice.get("token_ids") or []
        self.rows += take_rows(choice, self.plan)
        if not self.plan.token_ids and "token_ids" in choice:
            choice["token_ids"] = None
        self.held.append(Piece(event, choice, start, len(self.tokens)))

    def ready(self) -> list[Json]:
        """The events whose values are known, in order, with their signals."""
        known, events = max(0, len(self.rows) - 1), list[Json]()
        while self.held and self.held[0].end <= known:
            piece = self.held.pop(0)
            self._add_signals(piece)
            events.append(piece.event)
        return events

    def rest(self) -> list[Json]:
        """The events that are still held where an answer breaks off. Unknown values are null."""
        self.rows += [{}] * (len(self.tokens) + 1 - len(self.rows))
        return self.ready()

    async def finish(self, prompt: list[int], last_row: LastRow) -> list[Json]:
        """The events that were held, once the choice has ended."""
        final = self.held[-1]
        if self.tokens:
            self.ended_by = self._crossed(self.rows[-1]) if len(self.rows) > 1 else None
            if self.ended_by is not None:
                self._drop_end_token(final)
            else:
                self.rows.append(await last_row([*prompt, *self.tokens]))
                self.ended_by = self._crossed(self.rows[-1])
        if self.ended_by is not None:
            final.choice["finish_reason"] = STOP_WHEN_FINISH
        return self.ready()

    def _crossed(self, row: Row) -> StopBound | None:
        """The first bound that holds. A number that is NaN ends an answer too."""
        stops = self.plan.stops if row else ()
        return next((stop for stop in stops if stop.ends(row[stop.place])), None)

    def _drop_end_token(self, final: Piece) -> None:
        """Leaves out the end token. Its row is that of the whole text."""
        self.tokens.pop()
        self.dropped, final.end = 1, final.end - 1
        if self.plan.token_ids:
            final.choice["token_ids"] = final.choice["token_ids"][:-1]
        drop_last_logprob(final.choice)

    def _add_signals(self, piece: Piece) -> None:
        reason = None
        if piece.choice.get("finish_reason") is not None and self.ended_by is not None:
            reason = self.ended_by.reason(self.rows[-1][self.ended_by.place])
        # A chunk of a stream without tokens has no values.
        names = () if self.streamed and piece.start == piece.end else self.plan.signals
        values = {name: self._values(name, piece) for name in names}
        piece.choice.update(choice_fields(values, self.outputs.signals, reason))

    def _values(self, name: str, piece: Piece) -> list[Any]:
        """The values of a signal at the piece's tokens. A signal of next tokens scores the token
        itself, where it was chosen; others the text with it."""
        config = self.outputs.signals[name]
        shift = 0 if config.kind == "vocabulary" else 1
        places = self.outputs.places_of([name])
        rows = self.rows[piece.start + shift : piece.end + shift]
        values = [[returned_value(config, _unclipped(row.get(p))) for p in places] for row in rows]
        return [value[0] if len(places) == 1 else value for value in values]


def _unclipped(value: float | None) -> float | None:
    """None for a number that vLLM may have clipped."""
    return None if value is None or value <= LOWEST_LOGPROB else value


def take_rows(choice: Json, plan: AnswerPlan) -> list[Row]:
    """Takes the numbers of signals out of a choice's log-probabilities, and leaves in place what
    the client itself wants of those."""
    logprobs = choice.get("logprobs")
    if logprobs is None:
        return []
    if plan.logprobs is None:
        choice["logprobs"] = None
    if logprobs.get("content") is not None:  # a chat
        return [_take_of_chat(token, plan.logprobs or 0) for token in logprobs["content"]]
    return [_take_of_completion(table) for table in logprobs["top_logprobs"]]


def _take_of_chat(token: Json, wanted: int) -> Row:
    row, rest = {}, []
    for top in token["top_logprobs"]:
        id = virtual_id(top["token"])
        if id is None:
            rest.append(top)
        else:
            row[id - FIRST_VIRTUAL_ID] = top["logprob"]
    token["top_logprobs"] = rest[:wanted]
    return row


def _take_of_completion(table: Json) -> Row:
    row = {}
    for text in list(table):
        id = virtual_id(text)
        if id is not None:
            row[id - FIRST_VIRTUAL_ID] = table.pop(text)
    return row


def drop_last_logprob(choice: Json) -> None:
    """Drops the last token's entry of the log-probabilities, where there are any."""
    logprobs = choice.get("logprobs")
    if logprobs is not None:
        for name, value in logprobs.items():
            if isinstance(value, list):
                logprobs[name] = value[:-1]


class AnswerSignals:
    """A whole answer as it comes: `take` gets each event of a stream, or the one answer that is not
    streamed, and returns the events that can be sent."""

    def __init__(
        self, plan: AnswerPlan, outputs: SignalOutputs, last_row: LastRow, *, streamed: bool
    ) -> None:
        self.plan, self.outputs = plan, outputs
        self.last_row, self.streamed = last_row, streamed
        self.choices: dict[int, ChoiceSignals] = {}
        self.prompts: dict[int, list[int]] = {}

    async def take(self, event: Json) -> list[Json]:
        choices = event.get("choices") or []
        self._take_prompts(event, choices)
        ready: list[Json] = []
        for choice in choices:
            ready += await self._take_choice(event, choice)
        self._correct_usage(event, choices)
        if not self.streamed:
            return [event]
        return ready if choices else [*self.rest(), event]

    def rest(self) -> list[Json]:
        """The events that are still held at the end of a stream."""
        return [event for state in self.choices.values() for event in state.rest()]

    async def _take_choice(self, event: Json, choice: Json) -> list[Json]:
        index = choice["index"]
        if index not in self.choices:
            self.choices[index] = ChoiceSignals(self.plan, self.outputs, self.streamed)
        state = self.choices[index]
        state.take(event, choice)
        if choice.get("finish_reason") is None:
            return state.ready()
        return await state.finish(self.prompts[index // self.plan.choices], self.last_row)

    def _take_prompts(self, event: Json, choices: list[Json]) -> None:
        """Of a chat the event has the prompt's ids, of completions a choice: once a prompt."""
        for holder, index in ((event, 0), *((choice, choice["index"]) for choice in choices)):
            ids = holder.get("prompt_token_ids")
            if ids is not None:
                self.prompts.setdefault(index // self.plan.choices, ids)
            if not self.plan.token_ids and "prompt_token_ids" in holder:
                holder["prompt_token_ids"] = None

    def _correct_usage(self, event: Json, choices: list[Json]) -> None:
        """Tokens that are left out of the answer are not counted."""
        counted = [self.choices[choice["index"]] for choice in choices] or self.choices.values()
        dropped = sum(state.dropped for state in counted)
        if usage := event.get("usage"):
            usage["completion_tokens"] -= dropped
            usage["total_tokens"] -= dropped
