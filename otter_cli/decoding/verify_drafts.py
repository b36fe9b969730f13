"""Which drafted tokens stay: exact match when greedy, rejection sampling over the tree when drawn,
both lossless; typical acceptance on request, which is not."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from otter_cli.decoding.drafts import Draft
from otter_cli.decoding.sampling import Sampler

Acceptance = Literal["lossless", "typical"]

# Of typical acceptance: Medusa, section 2.3.1.
EPSILON, DELTA = 0.09, 0.3


def accept(
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
            passed = tried & _passes(remaining, token, tried, sampler, acceptance)
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


def _passes(
    remaining: Tensor, token: Tensor, tried: Tensor, sampler: Sampler, acceptance: Acceptance
) -> Tensor:
    if sampler.greedy:
        return token == remaining.argmax(-1)
    probability = remaining.gather(1, token[:, None])[:, 0]
    if acceptance == "typical":
        entropy = -(remaining * remaining.clamp(min=1e-30).log()).sum(-1)
        return probability > (DELTA * (-entropy).exp()).clamp(max=EPSILON)
    return sampler.numbers(tried) * remaining.sum(-1) < probability
