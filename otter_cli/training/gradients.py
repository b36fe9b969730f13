"""The gradients of a step: of this process's rows in parts, then of everybody's together."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.distributed.tensor import DTensor

from otter_cli.core.seeds import derive_seed, seed_everything

if TYPE_CHECKING:
    from otter_cli.training.loop import Run


def backward(run: Run) -> tuple[dict[str, float], dict[str, int]]:
    """Losses of the step's batches by signal, and how many `tokens` they have and were `fed`; the
    gradients are left in the parameters."""
    losses, counts = {}, {"tokens": 0, "fed": 0}
    for name in run.recipe.signals:
        losses[name] = _of_rows(run, name, counts)
    _exchange(run, losses, counts)
    return losses, counts


def _of_rows(run: Run, name: str, counts: dict[str, int]) -> float:
    """Loss of this process's rows."""
    objective, material = run.recipe.signals[name], run.material[name]
    total = 0.0
    parts = run.group.parts(material.order.rows(run.step), run.recipe.accumulate)
    for number, (rows, share) in enumerate(parts, run.group.rank * len(parts)):
        # Nothing random is carried from step to step, so a resumed run has nothing to restore;
        # what an objective draws differs from part to part.
        seed_everything(derive_seed("step", run.recipe.seed, run.step, number))
        batch = material.train.batch(rows).to(run.device)
        loss = objective.loss(run.trainee.reader(name), batch)
        drift = run.trainee.drift(batch)
        kept = 0.0 if drift is None else run.trainee.drift_weight * drift.mean()
        (share * (objective.weight * loss + kept)).backward()
        total += share * loss.item()
        if share:
            counts["tokens"] += batch.tokens
            counts["fed"] += run.trainee.fed(batch)
    return total


def _exchange(run: Run, losses: dict[str, float], counts: dict[str, int]) -> None:
    """Losses, counts and gradients become those of the whole batch."""
    if run.group.size == 1:
        return
    for parameter in run.trainee.parameters.values():
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    # Gradients in shards have been added up by the backward pass itself.
    gradients = [
        p.grad
        for p in run.trainee.parameters.values()
        if p.grad is not None and not isinstance(p.grad, DTensor)
    ]
    told = torch.tensor([*losses.values(), *counts.values()], device=run.device)
    run.group.add([*gradients, told])
    summed = told.tolist()
    losses.update(zip(losses, summed[: len(losses)], strict=True))
    counts.update(zip(counts, map(round, summed[len(losses) :]), strict=True))
