"""The gradients of a step: of this process's rows in parts, then of everybody's together."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from otter_cli.core.seeds import derive_seed, seed_everything

if TYPE_CHECKING:
    from otter_cli.training.loop import Run


def backward(run: Run) -> tuple[dict[str, float], int]:
    """Losses of the step's batches by signal, and their tokens; the gradients are left in the
    parameters."""
    losses, tokens = {}, 0
    for name in run.recipe.signals:
        losses[name], seen = _of_rows(run, name)
        tokens += seen
    return losses, _exchange(run, losses, tokens)


def _of_rows(run: Run, name: str) -> tuple[float, int]:
    """Loss and tokens of this process's rows."""
    objective, material = run.recipe.signals[name], run.material[name]
    total, tokens = 0.0, 0
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
        tokens += batch.tokens if share else 0
    return total, tokens


def _exchange(run: Run, losses: dict[str, float], tokens: int) -> int:
    """Losses and gradients become those of the whole batch, whose tokens it returns."""
    if run.group.size == 1:
        return tokens
    for parameter in run.trainee.parameters.values():
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    gradients = [p.grad for p in run.trainee.parameters.values() if p.grad is not None]
    told = torch.tensor([*losses.values(), tokens], device=run.device)
    run.group.add([*gradients, told])
    *summed, tokens_summed = told.tolist()
    losses.update(zip(losses, summed, strict=True))
    return round(tokens_summed)
