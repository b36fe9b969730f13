"""Guidance by signals of the graft: no pass beside the base's own (METHOD, 3)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from otter_cli.core.errors import OtterError
from otter_cli.decoding.guide import Guide, Scorer, Strength
from otter_cli.decoding.rows import end_tokens
from otter_cli.decoding.scores import check_signal, score_column, signal_scores
from otter_cli.decoding.session import DecodingSession
from otter_cli.decoding.state import State


@dataclass(frozen=True)
class SignalGuide(Guide):
    """By the value of the text with each candidate (V-style).

    Costs one step of k tokens in place of one of 1; the winner's next logits come out of it. A
    class signal guides by its probability. Without `end`, ending the text leaves its value as it
    is: for a signal that has not learnt to read an end (a recipe's `eos: false`).
    """

    signal: str
    strength: Strength
    candidates: int = 10
    label: str | None = None
    end: bool = True

    name: ClassVar[str] = "value"
    paper: ClassVar[str] = "Otter, arXiv 2408.10764"
    needs_stream: ClassVar[bool] = True

    def scorer(self, session: DecodingSession) -> Scorer:
        if self.candidates < 1:
            raise OtterError(
                f"{self.candidates} candidates of a guide that feeds each", hint="1 or more"
            )
        column = score_column(session.model, self.signal, self.label)
        unread = [] if self.end else sorted(end_tokens(session))
        return _Values(session, self.signal, column, unread)


@dataclass(frozen=True)
class VocabularyGuide(Guide):
    """By action values r(v given the text), which the pass before has already given (Q-style).

    Costs no pass: a product for each candidate, or over the vocabulary with `candidates` 0.
    """

    signal: str
    strength: Strength
    candidates: int = 10

    name: ClassVar[str] = "vocabulary"
    paper: ClassVar[str] = "Otter, arXiv 2408.10764; RAD-Q, arXiv 2407.04615"
    needs_stream: ClassVar[bool] = True

    def scorer(self, session: DecodingSession) -> Scorer:
        config = check_signal(session.model, self.signal)
        if config.kind != "vocabulary":
            raise OtterError(
                f"signal {self.signal!r} is of kind {config.kind}: it has no action values",
                hint="guide by it V-style, or graft one with --signal action-reward",
            )
        return _ActionValues(session, self.signal)


class _Values(Scorer):
    feeds, over_trees = True, True

    def __init__(
        self, session: DecodingSession, signal: str, column: int, unread: list[int]
    ) -> None:
        self.session, self.signal, self.column, self.unread = session, signal, column, unread

    def scores(self, state: State, fed: State | None, tokens: Tensor | None) -> Tensor:
        assert fed is not None and tokens is not None
        scores = signal_scores(self.session, self.signal, fed)[..., self.column]
        if not self.unread:
            return scores
        so_far = signal_scores(self.session, self.signal, state)[..., self.column]
        return torch.where(torch.isin(tokens, tokens.new_tensor(self.unread)), so_far, scores)


class _ActionValues(Scorer):
    over_trees = True

    def __init__(self, session: DecodingSession, signal: str) -> None:
        self.session, self.signal = session, signal

    def scores(self, state: State, fed: State | None, tokens: Tensor | None) -> Tensor:
        if tokens is None:
            return self.session.read(self.signal, state)[:, 0]
        return self.session.read(self.signal, state, tokens[:, None])[:, 0]
