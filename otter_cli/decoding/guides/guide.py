"""The interface of a guide, and the selection of the next token with guides.

A guide is a frozen request: how strongly a score of each candidate token changes the base's logits.
`Guide.scorer` checks the request and returns the object that scores candidates for one batch.
`GuidedSelector` adds the scores of all guides to the logits and picks the token.

A further guide is a file beside this one, with a subclass of `Guide` and one of `CandidateScorer`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from otter_cli.core.errors import OtterError
from otter_cli.decoding.bounds import Gate
from otter_cli.decoding.kv_session import HiddenStates
from otter_cli.decoding.results import ExternalModels
from otter_cli.decoding.sampling import Sampler, TokenSelector
from otter_cli.decoding.session import DecodingSession
from otter_cli.signals.finite import require_finite

# One for all prompts, or one for each.
Strength = float | tuple[float, ...]


class CandidateScorer(ExternalModels, ABC):
    """Scores candidates [rows, k] of one batch."""

    needs_candidate_states: ClassVar[bool] = False  # the base feeds the candidates first
    supports_trees: ClassVar[bool] = False  # it can score after each token of a draft tree

    @abstractmethod
    def scores(
        self, state: HiddenStates, candidate_states: HiddenStates | None, tokens: Tensor | None
    ) -> Tensor:
        """Scores [rows, k] of `tokens` [rows, k], or [rows, vocab] where `tokens` is None. `state`
        [rows, 1, d] is that before the candidates. `candidate_states` [rows, k, d] are their own,
        for a scorer that needs them."""

    def observe(self, tokens: Tensor, index: Tensor | None) -> None:
        """Called with the chosen tokens [rows], and their `index` [rows] among those that were
        scored; None where nothing was scored because every gate was closed."""
        return


class Guide(ABC):
    """`logit + strength * score` over the `candidates` best tokens by logit (0: all tokens), then
    argmax or a draw from them. A negative strength steers away from high scores."""

    name: ClassVar[str]
    paper: ClassVar[str]
    needs_stream: ClassVar[bool] = False
    strength: Strength
    candidates: int

    @abstractmethod
    def scorer(self, session: DecodingSession) -> CandidateScorer:
        """Raises OtterError where the guide does not work with the session's graft."""

    def restrict(self, logits: Tensor) -> Tensor:
        """Logits [rows, vocab], with minus infinity for tokens that may not be chosen."""
        return logits

    @property
    def strengths(self) -> tuple[float, ...]:
        return self.strength if isinstance(self.strength, tuple) else (self.strength,)

    def of_row(self, row: int) -> Guide:
        """The guide for one row of a batch: with that row's strength, where each has its own."""
        if len(self.strengths) == 1:
            return self
        alone: Any = self
        return replace(alone, strength=self.strengths[row])

    def check(self, rows: int, vocab: int) -> None:
        """Raises OtterError for strengths or a number of candidates out of range."""
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


class GuidedSelector(TokenSelector):
    """`logit + sum of strength * score` in the rows whose gate is open, plain logits in the others.
    Where every gate is closed, the step is one of a single token, bit for bit that of plain
    decoding. A row draws one number for each token, whether its gate is open or not."""

    def __init__(
        self, guides: Sequence[Guide], gate: Gate | None, session: DecodingSession, rows: int
    ) -> None:
        self.guides, self.gate, self.session = list(guides), gate, session
        self.scorers = [guide.scorer(session) for guide in guides]
        self.strengths = [
            torch.tensor(guide.strengths, device=session.device).expand(rows)[:, None]
            for guide in guides
        ]
        self.guided_rows = torch.stack(self.strengths).ne(0).any(0)[:, 0]
        # Read once: reading it at every step would wait for the device.
        self.all_guided = bool(self.guided_rows.all())
        self.needs_candidate_states = any(s.needs_candidate_states for s in self.scorers)
        counts = (guide.candidates for guide in guides if guide.candidates)
        self.candidate_count = min(counts, default=0)
        if self.needs_candidate_states and not self.candidate_count:
            raise OtterError(
                "this guide feeds every candidate to the base, and with all tokens as candidates a "
                "step would have as many tokens as the vocabulary",
                hint="give a number of candidates, such as 10",
            )

    def prefill(self, prompts: list[list[int]]) -> None:
        for scorer in self.scorers:
            scorer.prefill(prompts)

    def choose(
        self, state: HiddenStates, logits: Tensor, sampler: Sampler
    ) -> tuple[Tensor, HiddenStates | None]:
        uniform = sampler.uniform()
        gate_open = self._open_rows(state, logits)
        if gate_open is None or bool(gate_open.all()):
            return self._choose_guided(state, logits, sampler, uniform)
        plain = sampler.pick(logits, uniform)
        plain_logprobs = sampler.last_logprobs
        if not bool(gate_open.any()):
            self._observe(plain, None)
            return plain, None
        chosen = self._choose_guided(state, logits, sampler, uniform, gate_open, plain)
        sampler.last_logprobs = torch.where(gate_open, sampler.last_logprobs, plain_logprobs)
        return chosen

    def _choose_guided(
        self,
        state: HiddenStates,
        logits: Tensor,
        sampler: Sampler,
        uniform: Tensor | None,
        gate_open: Tensor | None = None,
        plain: Tensor | None = None,
    ) -> tuple[Tensor, HiddenStates | None]:
        """Guided tokens [rows], and `plain` ones where a row's gate is closed."""
        allowed = self._restrict(logits)
        if not self.candidate_count:
            tokens = sampler.pick(self.add_guidance(allowed, state, None, None), uniform)
            if gate_open is not None and plain is not None:
                tokens = torch.where(gate_open, tokens, plain)
            self._observe(tokens, tokens)
            return tokens, None
        values, candidates = allowed.topk(self.candidate_count, -1)
        if gate_open is not None and plain is not None:
            # In a row whose gate is closed, the plain choice takes the first candidate's place.
            candidates[:, 0] = torch.where(gate_open, candidates[:, 0], plain)
        states = self.session.extend_candidates(candidates) if self.needs_candidate_states else None
        index = sampler.pick(self.add_guidance(values, state, states, candidates), uniform)
        if gate_open is not None:
            index = torch.where(gate_open, index, 0)
        if states is not None:
            self.session.keep_candidate(index)
            states = states.select(index)
        tokens = candidates.gather(1, index[:, None])[:, 0]
        self._observe(tokens, index)
        return tokens, states

    def guide_tree(self, states: HiddenStates, logits: Tensor) -> Tensor:
        """Guided logits [rows, m, vocab] at the last m tokens of the session's tree, by their
        states and logits; minus infinity for tokens that are no candidates. A guide that needs
        candidate states takes one pass for the candidates of all m tokens."""
        rows, m = logits.shape[:2]
        flat_states, base = states.flatten_positions(), logits.flatten(0, 1)
        allowed = self._restrict(base)
        if self.candidate_count:
            values, tokens = allowed.topk(self.candidate_count, -1)
            candidate_states = None
            if self.needs_candidate_states:
                candidate_states = self._extend_tree(tokens.unflatten(0, (rows, m)))
            scored = self.add_guidance(values, flat_states, candidate_states, tokens)
            guided = torch.full_like(base, -torch.inf).scatter(-1, tokens, scored.to(base.dtype))
        else:
            guided = self.add_guidance(allowed, flat_states, None, None)
        gate_open = self.guided_rows.repeat_interleave(m)
        if self.gate is not None:
            gate_open = gate_open & self.gate.is_open(self.session, flat_states, base)
        return torch.where(gate_open[:, None], guided, base).unflatten(0, (rows, m))

    def _extend_tree(self, tokens: Tensor) -> HiddenStates:
        """States [rows * m, k, ...] of candidates [rows, m, k] after the tree's last m tokens."""
        m, k = tokens.shape[1:]
        # Without a tree m is 1, and the parent is the text: -1.
        first = len(self.session.tree) - m
        parents = [first + node for node in range(m) for _ in range(k)]
        return self.session.extend_tree(tokens.flatten(1), parents).split(m)

    def add_guidance(
        self,
        logits: Tensor,
        state: HiddenStates,
        candidate_states: HiddenStates | None,
        tokens: Tensor | None,
    ) -> Tensor:
        """Logits [rows, k] of `tokens` (None: of all tokens) plus strength * score of each guide.
        Raises OtterError where a score is not finite: an argmax would choose NaN."""
        for guide, scorer, strength in zip(self.guides, self.scorers, self.strengths, strict=True):
            scores = scorer.scores(state, candidate_states, tokens)
            require_finite(scores, f"a score of the guide {guide.name}{_signal_phrase(guide)}")
            if (positions := len(logits) // len(strength)) > 1:  # several tree tokens a row
                strength = strength.repeat_interleave(positions, 0)
            logits = logits + strength * scores
        return logits

    def _restrict(self, logits: Tensor) -> Tensor:
        for guide in self.guides:
            logits = guide.restrict(logits)
        return logits

    def _open_rows(self, state: HiddenStates, logits: Tensor) -> Tensor | None:
        """Which rows are guided, [rows]; None: all."""
        if self.gate is None:
            return None if self.all_guided else self.guided_rows
        return self.gate.is_open(self.session, state, logits) & self.guided_rows

    def _observe(self, tokens: Tensor, index: Tensor | None) -> None:
        for scorer in self.scorers:
            scorer.observe(tokens, index)
        self.external_passes = sum(scorer.external_passes for scorer in self.scorers)
        self.external_bytes = sum(scorer.external_bytes for scorer in self.scorers)


def _signal_phrase(guide: Guide) -> str:
    name = getattr(guide, "signal", None)
    return f" by signal {name!r}" if name is not None else ""
