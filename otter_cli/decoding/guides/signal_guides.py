"""Guides by signals of the graft, which need no further model (docs/method.md, "Guided decoding").

`SignalGuide` scores the text with each candidate (V-style); `VocabularyGuide` reads action values
of all tokens from the previous pass (Q-style). `guide_for_signal` picks one by the signal's kind.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from otter_cli.core.errors import OtterError
from otter_cli.decoding.guides.guide import CandidateScorer, Guide, Strength
from otter_cli.decoding.kv_session import HiddenStates
from otter_cli.decoding.session import (
    DecodingSession,
    check_signal,
    end_tokens,
    score_column,
    signal_scores,
)
from otter_cli.model.otter import OtterForCausalLM


@dataclass(frozen=True)
class SignalGuide(Guide):
    """Scores a candidate by the signal's value of the text with it (V-style).

    Costs a step of k tokens in place of a step of one; it also gives the states from which the
    next logits are computed. A class signal guides by its probability. With `end=False` an end
    token leaves the value of the text as it is: for a signal that was not trained at ends (a
    recipe's `eos: false`).
    """

    signal: str
    strength: Strength
    candidates: int = 10
    label: str | None = None
    end: bool = True

    name: ClassVar[str] = "value"
    paper: ClassVar[str] = "Otter, arXiv 2408.10764"
    needs_stream: ClassVar[bool] = True

    def scorer(self, session: DecodingSession) -> CandidateScorer:
        if self.candidates < 1:
            raise OtterError(
                f"{self.candidates} candidates of a guide that feeds each", hint="1 or more"
            )
        column = score_column(session.model, self.signal, self.label)
        unscored = [] if self.end else sorted(end_tokens(session))
        return _ValueScorer(session, self.signal, column, unscored)


@dataclass(frozen=True)
class VocabularyGuide(Guide):
    """Scores a candidate v by its action value r(v given the text) (Q-style). The previous pass
    gives it, so there is no further pass: only a product for each candidate, or over the vocabulary
    with `candidates` 0."""

    signal: str
    strength: Strength
    candidates: int = 10

    name: ClassVar[str] = "vocabulary"
    paper: ClassVar[str] = "Otter, arXiv 2408.10764; RAD-Q, arXiv 2407.04615"
    needs_stream: ClassVar[bool] = True

    def scorer(self, session: DecodingSession) -> CandidateScorer:
        config = check_signal(session.model, self.signal)
        if config.kind != "vocabulary":
            raise OtterError(
                f"signal {self.signal!r} is of kind {config.kind}: it has no action values",
                hint="guide by it V-style, or graft one with --signal action-reward",
            )
        return _ActionValueScorer(session, self.signal)


class _ValueScorer(CandidateScorer):
    needs_candidate_states, supports_trees = True, True

    def __init__(
        self, session: DecodingSession, signal: str, column: int, unscored: list[int]
    ) -> None:
        self.session, self.signal, self.column, self.unscored = session, signal, column, unscored

    def scores(
        self, state: HiddenStates, candidate_states: HiddenStates | None, tokens: Tensor | None
    ) -> Tensor:
        assert candidate_states is not None and tokens is not None
        scores = signal_scores(self.session, self.signal, candidate_states)[..., self.column]
        if not self.unscored:
            return scores
        before = signal_scores(self.session, self.signal, state)[..., self.column]
        return torch.where(torch.isin(tokens, tokens.new_tensor(self.unscored)), before, scores)


class _ActionValueScorer(CandidateScorer):
    supports_trees = True

    def __init__(self, session: DecodingSession, signal: str) -> None:
        self.session, self.signal = session, signal

    def scores(
        self, state: HiddenStates, candidate_states: HiddenStates | None, tokens: Tensor | None
    ) -> Tensor:
        read_tokens = None if tokens is None else tokens[:, None]
        return self.session.read(self.signal, state, read_tokens)[:, 0]


def guide_for_signal(
    model: OtterForCausalLM, name: str, weight: float, candidates: int, label: str | None = None
) -> Guide:
    """The guide for a signal SIGNAL[/LABEL]: Q-style where the signal scores next tokens, V-style
    where it scores text. Raises OtterError where the graft has no such signal."""
    signal, _, own_label = name.partition("/")
    if check_signal(model, signal).kind == "vocabulary" and not own_label:
        return VocabularyGuide(signal, weight, candidates)
    training = model.manifest.training.get(signal)
    end = training is None or training.end is not False
    return SignalGuide(signal, weight, candidates, own_label or label, end=end)


def guides_for_signals(
    model: OtterForCausalLM, weights: Mapping[str, float], candidates: int
) -> list[Guide]:
    """A guide for each of the signals in `weights`. Raises OtterError."""
    return [guide_for_signal(model, name, float(w), candidates) for name, w in weights.items()]


def parse_guide(text: str, default: float) -> tuple[str, float]:
    """Reads NAME[/LABEL][:WEIGHT]. Raises OtterError where the weight is not a number."""
    name, colon, weight = text.partition(":")
    try:
        return name, float(weight) if colon else default
    except ValueError:
        raise OtterError(f"guide {text!r}: {weight!r} is not a number", hint="reward:1.5") from None
