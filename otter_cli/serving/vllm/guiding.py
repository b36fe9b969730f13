"""Q-style guidance of one row, in the pass that made its logits: METHOD, 3."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from otter_cli.serving.vllm.request import Guide


def guide_row(logits: Tensor, guide: Guide, model: Any, row: int) -> Tensor:
    """`logit + sum of strength * score` over the best candidates, the rest ruled out; [vocab].

    A closed gate leaves the logits as they are.
    """
    if not _open(logits, guide):
        return logits
    at = torch.tensor([row], device=logits.device)
    steered = logits.clone()
    for name, strength in guide.strengths:
        steered += strength * model.read_signal(name, model.step, at)[0]
    if not 0 < guide.candidates < len(logits):
        return steered
    best = logits.topk(guide.candidates).indices
    return torch.full_like(logits, -math.inf).scatter(0, best, steered[best])


def _open(logits: Tensor, guide: Guide) -> bool:
    if guide.entropy_above is None and guide.top_below is None:
        return True
    probabilities = logits.softmax(-1)
    entropy = float(torch.special.entr(probabilities).sum())
    above, below = guide.entropy_above, guide.top_below
    return (above is None or entropy > above) and (
        below is None or float(probabilities.max()) < below
    )
