"""Which drafted tokens are kept: exact match when greedy, rejection sampling over the tree when
sampled.

Both are lossless; typical acceptance is not, and must be asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from otter_cli.decoding.batch_state import BatchState
from otter_cli.decoding.results import Generation, NearTie
from otter_cli.decoding.sampling import Sampler
from otter_cli.decoding.session import DecodingSession
from otter_cli.decoding.speculative.drafts import Draft
from otter_cli.model.otter import OtterForCausalLM

Acceptance = Literal["lossless", "typical"]

# Of typical acceptance: Medusa, section 2.3.1.
TYPICAL_EPSILON, TYPICAL_DELTA = 0.09, 0.3


def accept_drafts(
    logits: Tensor, draft: Draft, sampler: Sampler, acceptance: Acceptance = "lossless"
) -> tuple[Tensor, Tensor, Tensor]:
    """Logits [rows, 1 + n, vocab] at the pending token and each draft: the accepted path [rows,
    depth] in numbers of drafts, how many of it count [rows], and the token after those, [rows].

    Rejection: a draft d without a distribution of its own is kept with probability p(d); else p
    loses d and the next sibling is tried; the last p gives the token (Leviathan et al., arXiv
    2211.17192, with q a point mass; SpecInfer, arXiv 2305.09781, over trees).
    """
    rows, device = torch.arange(len(logits), device=logits.device), logits.device
    children = draft.children()
    at = torch.zeros(len(logits), dtype=torch.long, device=device)  # 0: the pending token
    going = torch.ones_like(at, dtype=torch.bool)
    remaining = _distribution(logits[:, 0], sampler)
    depth = max(draft.depths, default=0)
    path = torch.zeros(len(logits), depth, dtype=torch.long, device=device)
    kept = torch.zeros_like(at)
    for level in range(depth):
        parent, moved = at, torch.zeros_like(going)
        for sibling in range(children.shape[1]):
            child = children[parent, sibling]
            tried = going & ~moved & (child >= 0) & draft.counted[rows, child]
            token = draft.tokens[rows, child.clamp(min=0)]
            passed = tried & _is_accepted(remaining, token, tried, sampler, acceptance)
            if acceptance == "lossless" and not sampler.greedy:
                without = remaining.scatter(1, token[:, None], 0.0)
                remaining = torch.where((tried & ~passed)[:, None], without, remaining)
            at, moved = torch.where(passed, child + 1, at), moved | passed
        path[:, level] = torch.where(moved, at - 1, 0)
        kept, going = kept + moved, moved
        following = _distribution(logits[rows, at], sampler)
        remaining = torch.where(moved[:, None], following, remaining)
    last = remaining.argmax(-1) if sampler.greedy else sampler.draw(remaining)
    return path, kept, last


def _distribution(logits: Tensor, sampler: Sampler) -> Tensor:
    return logits if sampler.greedy else sampler.probabilities(logits)


def _is_accepted(
    remaining: Tensor, token: Tensor, tried: Tensor, sampler: Sampler, acceptance: Acceptance
) -> Tensor:
    if sampler.greedy:
        return token == remaining.argmax(-1)
    probability = remaining.gather(1, token[:, None])[:, 0]
    if acceptance == "typical":
        entropy = -(remaining * remaining.clamp(min=1e-30).log()).sum(-1)
        return probability > (TYPICAL_DELTA * (-entropy).exp()).clamp(max=TYPICAL_EPSILON)
    return sampler.numbers(tried) * remaining.sum(-1) < probability


# In units of the last place of the largest logit: well above what the two steps differ by.
_TIE_ULPS = 64


def near_tie_gap(logits: Tensor) -> Tensor:
    """The gap [...] below which two logits of [..., vocab] count as tied."""
    return _TIE_ULPS * torch.finfo(logits.dtype).eps * logits.abs().amax(-1).double()


class NearTieRecorder:
    """Notes them in the generations of `rows`."""

    def __init__(self, rows: BatchState) -> None:
        self.rows = rows

    def note(self, logits: Tensor, accepted: Tensor) -> None:
        """By the logits [rows, m, vocab] along the accepted path: each of the first `accepted` + 1
        chose the token after it."""
        top = logits.topk(2, -1)
        gaps = (top.values[..., 0].double() - top.values[..., 1].double()).cpu()
        tied = gaps < near_tie_gap(logits).cpu()
        if not bool(tied.any()):
            return
        for row, generation in enumerate(self.rows.rows):
            # The token after the last accepted one is pending: it comes next.
            first = len(generation.tokens) - self.rows.taken[row] + 1
            # Of a row that has ended the pending one never does.
            written = len(generation.tokens) + self.rows.open[row]
            for m in range(min(int(accepted[row]) + 1, self.rows.taken[row])):
                if tied[row, m] and first + m < written:
                    best, second = top.indices[row, m].tolist()
                    tie = NearTie(first + m, best, second, float(gaps[row, m]))
                    generation.near_ties.append(tie)


class ExactRescorer:
    """Plain decoding of one prompt, which follows the text only as far as it is asked."""

    def __init__(self, model: OtterForCausalLM, prompt: list[int]) -> None:
        self.model, self.prompt = model, prompt
        self.fed: list[int] = []
        self.session = DecodingSession(model, stream=False, windows="cached")

    @property
    def passes(self) -> int:
        return self.session.passes

    def choice(self, text: list[int]) -> int:
        """The token after a text that begins with the prompt and goes on from the last one."""
        if not self.fed:
            self.state, self.fed = self.session.prefill([self.prompt]), list(self.prompt)
        for token in text[len(self.fed) :]:
            self.state = self.session.step(torch.tensor([token], device=self.session.device))
        self.fed = list(text)
        return int(self.session.logits(self.state)[0, 0].argmax())

    def settle(
        self, text: list[int], logits: Tensor, path: list[int], following: int
    ) -> tuple[int, int]:
        """How many drafts of the accepted `path` (tokens) stay after `text`, and the token after
        them, by logits [1 + path, vocab] at the text's last token and along the path."""
        top = logits.topk(2, -1).values.double()
        tied = (top[:, 0] - top[:, 1] < near_tie_gap(logits)).tolist()
        chosen = [*path, following]
        for place, token in enumerate(chosen):
            if tied[place] and (exact := self.choice([*text, *path[:place]])) != token:
                return place, exact
        return len(path), following


def rescore_near_ties(
    model: OtterForCausalLM, prompt: Sequence[int], generation: Generation
) -> None:
    """Notes at each near-tie of a generation what a step of one token chooses after the same text.
    Costs a prefill and a pass for each token up to the last of them; without any, nothing."""
    if not generation.near_ties:
        return
    single = ExactRescorer(model, list(prompt))
    generation.near_ties = [
        replace(tie, one_token=single.choice([*prompt, *generation.tokens[: tie.position]]))
        for tie in generation.near_ties
    ]
    generation.counters.rescoring_passes += single.passes
