"""Guided selection of the next token: candidates, the sum of all guides, and the gate."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from otter_cli.core.errors import OtterError
from otter_cli.decoding.guides.guide import Gate, Guide
from otter_cli.decoding.hidden_states import HiddenStates
from otter_cli.decoding.sampling import Sampler, TokenSelector
from otter_cli.decoding.session import DecodingSession
from otter_cli.signals.finite import require_finite


class GuidedSelector(TokenSelector):
    """`logit + sum of strength * score`, in the rows whose gate is open; plain in the others.

    Where every gate is closed the step is that of one token, bit for bit plain decoding's. A row
    draws one number a token, whatever its gate says.
    """

    def __init__(
        self, guides: Sequence[Guide], gate: Gate | None, session: DecodingSession, rows: int
    ) -> None:
        self.guides, self.gate, self.session = list(guides), gate, session
        self.scorers = [guide.scorer(session) for guide in guides]
        self.strengths = [
            torch.tensor(guide.strengths, device=session.device).expand(rows)[:, None]
            for guide in guides
        ]
        steered = torch.stack(self.strengths).ne(0).any(0)[:, 0]
        # Asked once: reading it at every step would wait for the device.
        self.steered, self.all_steered = steered, bool(steered.all())
        self.feeds = any(scorer.feeds for scorer in self.scorers)
        self.count = min((guide.candidates for guide in guides if guide.candidates), default=0)
        if self.feeds and not self.count:
            raise OtterError(
                "scoring every token of the vocabulary as a candidate of its own is a step of as "
                "many tokens",
                hint="give a number of candidates, such as 10",
            )

    def prefill(self, prompts: list[list[int]]) -> None:
        for scorer in self.scorers:
            scorer.prefill(prompts)

    def choose(
        self, state: HiddenStates, logits: Tensor, sampler: Sampler
    ) -> tuple[Tensor, HiddenStates | None]:
        drawn = sampler.uniform()
        opened = self._open(state, logits)
        some_closed = opened is not None and not bool(opened.all())
        plain = sampler.pick(logits, drawn) if some_closed else None
        by_plain = sampler.drawn
        if opened is not None and plain is not None and not bool(opened.any()):
            return self._chosen(plain, None), None
        allowed = logits
        for guide in self.guides:
            allowed = guide.within(allowed)
        if not self.count:
            index = sampler.pick(self.steer(allowed, state, None, None), drawn)
            if opened is not None and plain is not None:
                index = torch.where(opened, index, plain)
                sampler.drawn = torch.where(opened, sampler.drawn, by_plain)
            return self._chosen(index, index), None
        values, tokens = allowed.topk(self.count, -1)
        if opened is not None and plain is not None:
            # A closed row's own choice goes through the step in place of its first candidate.
            tokens[:, 0] = torch.where(opened, tokens[:, 0], plain)
        fed = self.session.branch(tokens) if self.feeds else None
        index = sampler.pick(self.steer(values, state, fed, tokens), drawn)
        if opened is not None:
            index = torch.where(opened, index, 0)
            sampler.drawn = torch.where(opened, sampler.drawn, by_plain)
        if fed is not None:
            self.session.choose(index)
            fed = fed.at(index)
        return self._chosen(tokens.gather(1, index[:, None])[:, 0], index), fed

    def over_nodes(self, states: HiddenStates, logits: Tensor) -> Tensor:
        """Guided logits [rows, m, vocab] at the last m tokens of the session's tree, by their
        states and logits: minus infinity for all but candidates. A guide that feeds candidates
        takes a pass for those of all m tokens."""
        rows, m = logits.shape[:2]
        flat, base = states.each_alone(), logits.flatten(0, 1)
        allowed = base
        for guide in self.guides:
            allowed = guide.within(allowed)
        if self.count:
            values, tokens = allowed.topk(self.count, -1)
            fed = self._fed(tokens.unflatten(0, (rows, m))) if self.feeds else None
            chosen = self.steer(values, flat, fed, tokens)
            steered = torch.full_like(base, -torch.inf).scatter(-1, tokens, chosen.to(base.dtype))
        else:
            steered = self.steer(allowed, flat, None, None)
        opened = self.steered.repeat_interleave(m)
        if self.gate is not None:
            opened = opened & self.gate.opened(self.session, flat, base)
        return torch.where(opened[:, None], steered, base).unflatten(0, (rows, m))

    def _fed(self, tokens: Tensor) -> HiddenStates:
        """States [rows * m, k, ...] of candidates [rows, m, k] after the tree's last m tokens."""
        m, k = tokens.shape[1:]
        # Before there is a tree, the one node is the text itself: -1.
        first = len(self.session.tree) - m
        parents = [first + node for node in range(m) for _ in range(k)]
        return self.session.grow(tokens.flatten(1), parents).split(m)

    def steer(
        self, logits: Tensor, state: HiddenStates, fed: HiddenStates | None, tokens: Tensor | None
    ) -> Tensor:
        """Logits [rows, k] of `tokens` (None: of all) with what the guides say of them.

        Raises OtterError where a score is no number: an argmax over NaN would choose it.
        """
        steering = zip(self.guides, self.scorers, self.strengths, strict=True)
        for guide, scorer, strength in steering:
            scores = scorer.scores(state, fed, tokens)
            require_finite(scores, f"a score of the guide {guide.name}{_signal_phrase(guide)}")
            if (several := len(logits) // len(strength)) > 1:  # of a tree's tokens, to a row
                strength = strength.repeat_interleave(several, 0)
            logits = logits + strength * scores
        return logits

    def _open(self, state: HiddenStates, logits: Tensor) -> Tensor | None:
        """Which rows are guided, [rows]; None: all."""
        if self.gate is None:
            return None if self.all_steered else self.steered
        return self.gate.opened(self.session, state, logits) & self.steered

    def _chosen(self, tokens: Tensor, index: Tensor | None) -> Tensor:
        for scorer in self.scorers:
            scorer.chose(tokens, index)
        self.external_passes = sum(scorer.external_passes for scorer in self.scorers)
        self.external_bytes = sum(scorer.external_bytes for scorer in self.scorers)
        return tokens


def _signal_phrase(guide: Guide) -> str:
    name = getattr(guide, "signal", None)
    return f" by signal {name!r}" if name is not None else ""
