"""Which drafted tokens stay: exact match when greedy, else rejection sampling; both lossless."""

from __future__ import annotations

import torch
from torch import Tensor

from otter_cli.decoding.sampling import Sampler


def accept(
    logits: Tensor, drafts: Tensor, lengths: Tensor, sampler: Sampler
) -> tuple[Tensor, Tensor]:
    """Logits [rows, n + 1, vocab] at the pending token and each draft [rows, n], of which the
    first `lengths` count: how many are accepted, and the token after those, [rows] each."""
    steps = torch.arange(drafts.shape[1], device=drafts.device)
    counted = steps < lengths[:, None]
    if not sampler.greedy:
        return _by_rejection(logits, drafts, counted, sampler)
    best = logits.argmax(-1)
    kept = ((best[:, :-1] == drafts) & counted).long().cumprod(-1).sum(-1)
    return kept, best.gather(1, kept[:, None])[:, 0]


def _by_rejection(
    logits: Tensor, drafts: Tensor, counted: Tensor, sampler: Sampler
) -> tuple[Tensor, Tensor]:
    """A draft d without a distribution of its own is kept with probability p(d); else the token
    comes from p without d (Leviathan et al., arXiv 2211.17192, with q a point mass)."""
    going = torch.ones(len(drafts), dtype=torch.bool, device=drafts.device)
    kept = torch.zeros(len(drafts), dtype=torch.long, device=drafts.device)
    final = sampler.probabilities(logits[:, 0])
    for i in range(drafts.shape[1]):
        probability = final.gather(1, drafts[:, i : i + 1])[:, 0]
        passed = going & counted[:, i] & (sampler.numbers() < probability)
        refused = going & counted[:, i] & ~passed
        without = final.scatter(1, drafts[:, i : i + 1], 0.0)
        final = torch.where(refused[:, None], without, final)
        going = passed
        following = sampler.probabilities(logits[:, i + 1])
        final = torch.where(going[:, None], following, final)
        kept = kept + passed
    return kept, sampler.draw(final)
