"""The interface of a guide, and the gate that says when guides apply.

A guide is a frozen request: how strongly a score of each candidate token changes the base's logits.
`Guide.scorer` checks the request and returns the object that scores candidates for one batch.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from otter_cli.core.errors import OtterError
from otter_cli.decoding.hidden_states import HiddenStates
from otter_cli.decoding.session import DecodingSession
from otter_cli.decoding.stopping import SignalBound, parse_bound, parse_signal_bound

# One for all prompts, or one for each.
Strength = float | tuple[float, ...]


class CandidateScorer(ABC):
    """Scores of candidates [rows, k] at work on one batch; what it runs beside the base counts."""

    feeds: ClassVar[bool] = False  # whether the base has to feed the candidates first
    over_trees: ClassVar[bool] = False  # whether it can score after tokens of a draft
    external_passes: int = 0
    external_bytes: int = 0

    def prefill(self, prompts: list[list[int]]) -> None:
        """Feeds the prompts to a model of its own, where there is one."""
        return

    @abstractmethod
    def scores(
        self, state: HiddenStates, fed: HiddenStates | None, tokens: Tensor | None
    ) -> Tensor:
        """Of tokens [rows, k], or of the whole vocabulary, by the states before them [rows, 1, d]
        and, of a scorer that `feeds`, their own [rows, k, d]."""

    def chose(self, tokens: Tensor, index: Tensor | None) -> None:
        """Tokens [rows] come next; `index` [rows] is their place among those it has scored, None
        where it was not asked."""
        return


class Guide(ABC):
    """`logit + strength * score` over the `candidates` best by logits (0: all), then argmax or a
    draw from them. A negative strength steers away."""

    name: ClassVar[str]
    paper: ClassVar[str]
    needs_stream: ClassVar[bool] = False
    strength: Strength
    candidates: int

    @abstractmethod
    def scorer(self, session: DecodingSession) -> CandidateScorer:
        """Raises OtterError where the guide can't work with the session's graft."""

    def within(self, logits: Tensor) -> Tensor:
        """Logits [rows, vocab] of what may be chosen; minus infinity elsewhere."""
        return logits

    @property
    def strengths(self) -> tuple[float, ...]:
        return self.strength if isinstance(self.strength, tuple) else (self.strength,)

    def check(self, rows: int, vocab: int) -> None:
        """Raises OtterError for strengths or a number of candidates without meaning."""
        for strength in self.strengths:
            if not math.isfinite(strength):
                raise OtterError(
                    f"the guide's strength is {strength}", hint="a number; 0 is plain decoding"
                )
        if len(self.strengths) not in (1, rows):
            raise OtterError(
                f"{len(self.strengths)} strengths of a guide, for {rows} prompts",
                hint="one for all, or one for each",
            )
        if not 0 <= self.candidates <= vocab:
            raise OtterError(
                f"{self.candidates} candidates, of a vocabulary of {vocab}",
                hint=f"from 1 to {vocab}; 0: all",
            )


@dataclass(frozen=True)
class Gate:
    """Open where every condition holds: the entropy of the base's next token (nats) is above a
    bound, the probability of its best token below one, a signal of the text so far past one."""

    entropy: float | None = None
    top_probability: float | None = None
    signal: SignalBound | None = None

    def __post_init__(self) -> None:
        for what in (self.entropy, self.top_probability):
            if what is not None and not math.isfinite(what):
                raise OtterError(f"a gate at {what}", hint="a number")

    @property
    def needs_stream(self) -> bool:
        return self.signal is not None

    def opened(self, session: DecodingSession, state: HiddenStates, logits: Tensor) -> Tensor:
        """[rows], by the base's logits [rows, vocab] and the states [rows, 1, d] they come from."""
        log_p = logits.float().log_softmax(-1)
        opened = log_p[:, 0] == log_p[:, 0]
        if self.entropy is not None:
            # 0 log 0 is 0, where a token is ruled out.
            terms = (log_p.exp() * log_p).nan_to_num(0.0)
            opened = opened & (-terms.sum(-1) > self.entropy)
        if self.top_probability is not None:
            opened = opened & (log_p.amax(-1).exp() < self.top_probability)
        if self.signal is not None:
            opened = opened & self.signal.crossed(self.signal.scores(session, state)[:, 0])
        return opened


def parse_gate(texts: list[str]) -> Gate | None:
    """Reads `entropy>1.5`, `p<0.6` and `SIGNAL>0.5`, all of which must hold. Raises OtterError."""
    entropy, top, signal = None, None, None
    for text in texts:
        name, above, number = parse_bound(text)
        if name == "entropy" and above:
            entropy = number
        elif name == "p" and not above:
            top = number
        elif name in ("entropy", "p") or signal is not None:
            raise OtterError(
                f"gate {text!r} can't be", hint="entropy>X, p<X, and one signal's bound"
            )
        else:
            signal = parse_signal_bound(text)
    return Gate(entropy, top, signal) if texts else None
