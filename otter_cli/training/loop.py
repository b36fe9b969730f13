"""The training loop: base forward, stream, head, loss, gradients, optimiser step.

Only the trainable's own parameters get gradients. The loop evaluates, saves states and stops early;
the memory of a step is measured here too."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass as made_of_others

from otter_cli.core.console import progress, say
from otter_cli.core.intervals import Interval
from otter_cli.core.process import derive_seed, interruptible, seed_everything
from otter_cli.training.distributed import ProcessGroup
from otter_cli.training.evaluation import EarlyStopping, evaluate
from otter_cli.training.metrics_log import MetricsLog
from otter_cli.training.optimiser import (
    TrainingGuard,
    clip_gradients,
    learning_rate_at,
    make_optimiser,
    set_learning_rate,
)
from otter_cli.training.recipe import Recipe
from otter_cli.training.sharding import local_shard
from otter_cli.training.signal_data import SignalData
from otter_cli.training.state import StateFolder, pack_state, unpack_state
from otter_cli.training.trainable import Trainable

Metrics = dict[str, dict[str, Interval]]
# Told the steps done and, after an evaluation, the figures: it makes the folder usable.
WriteFolder = Callable[[int, Metrics], None]


@dataclass
class TrainingRun:
    """One training run. `identity` is what a resumed run must have in common with it."""

    trainee: Trainable
    recipe: Recipe
    material: Mapping[str, SignalData]
    states: StateFolder
    identity: dict[str, Any]
    device: str = "cpu"
    group: ProcessGroup = field(default_factory=ProcessGroup)
    step: int = 0
    seconds: float = 0.0
    metrics: Metrics = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.optimiser = make_optimiser(self.trainee.parameters, self.recipe)
        self.guard = TrainingGuard(self.trainee.parameters, self.trainee.gradient_free)
        self.choice = EarlyStopping(self.recipe)

    def go(self, journal: MetricsLog, write: WriteFolder) -> None:
        """Trains to the last step. KeyboardInterrupt after Ctrl-C, with everything saved."""
        steps, every = self.recipe.steps, self.recipe.evaluate_every
        if self.choice.wanted and self.step == 0:
            self._choose(journal)
        with interruptible() as interrupted, progress(steps - self.step, "training") as advance:
            while self.step < steps and not self.choice.stopped:
                journal.append(self.take_step())
                advance(1)
                if any(self.group.gather(interrupted())):
                    self.save()
                    write(self.step, {})
                    say(f"stopped after step {self.step} of {steps}: --resume goes on")
                    raise KeyboardInterrupt
                last, due = self.step == steps, self._due(every)
                if due and self.choice.wanted:
                    self._choose(journal)
                # Before the folder is written, so that no tensor there is ahead of the state.
                if last or due or self._due(self.recipe.save_every):
                    self.save()
                if due and not last:
                    if not self.choice.wanted:
                        self.evaluate(journal)
                    write(self.step, self.metrics)
        self._finish(journal, write)

    def take_step(self, rate: float | None = None) -> dict[str, Any]:
        """A batch of every signal, then one move of the parameters; `rate` instead of the
        schedule's."""
        began = time.monotonic()
        rate = learning_rate_at(self.step, self.recipe) if rate is None else rate
        set_learning_rate(self.optimiser, rate)
        losses, counts = backward(self)
        total = sum(self.recipe.signals[name].weight * loss for name, loss in losses.items())
        gradients, norm = self.guard.check(self.step, total)
        clip_gradients(gradients, norm, self.recipe.clip)
        self.optimiser.step()
        self.optimiser.zero_grad()
        self.step += 1
        self.seconds += time.monotonic() - began
        return {
            "step": self.step,
            "loss": losses,
            "rate": rate,
            "gradient": norm,
            **counts,
            "seconds": self.seconds,
        }

    def _choose(self, journal: MetricsLog) -> None:
        """Evaluates on validation rows; the best step's parameters are kept."""
        self.evaluate(journal)
        if self.choice.see(self.step, self.metrics):
            tensors = pack_state(self.trainee.parameters)
            if self.group.first:
                self.states.keep(self.step, tensors)

    def _finish(self, journal: MetricsLog, write: WriteFolder) -> None:
        """The parameters of the best step, or of the last; their figures on test data."""
        at = self.step
        if self.choice.step is not None:
            at = self.choice.step
            self.group.wait()  # until the first has written it
            with self.states.being_read(kept=at):
                unpack_state(self.states.kept(at), self.trainee.parameters)
            stopped = " (no better one since)" if self.choice.stopped else ""
            say(
                f"of {self.step} steps the best is {at}{stopped}: {self.recipe.best} "
                f"{self.choice.figure:.4f} on validation rows"
            )
        self.evaluate(journal, last=True)
        write(at, self.metrics)

    def evaluate(self, journal: MetricsLog, *, last: bool = False) -> None:
        """Held-out figures of every signal that has such data: test data; but validation rows,
        where there are any, as long as training goes on."""
        began = time.monotonic()
        self.metrics = {}
        for name, objective in self.recipe.signals.items():
            material = self.material[name]
            held_out = material.test if last else material.validation or material.test
            if held_out is not None:
                self.metrics[name] = evaluate(
                    objective,
                    self.trainee.signals[name],
                    self.trainee.reader(name),
                    held_out,
                    objective.batch_size or self.recipe.batch_size,
                    self.device,
                    self.group,
                    self.trainee.drift,
                )
        for name, figures in self.metrics.items():
            told = ", ".join(f"{what} {value.mean:.3f}" for what, value in figures.items())
            say(f"step {self.step}: {name} {told}")
        journal.append(
            {
                "step": self.step,
                "evaluation": {
                    n: {w: vars(v) for w, v in f.items()} for n, f in self.metrics.items()
                },
                "evaluation_seconds": time.monotonic() - began,
            }
        )

    def save(self) -> None:
        notes = {
            "step": self.step,
            "seconds": self.seconds,
            "guard": self.guard.notes(),
            "choice": self.choice.notes(),
            "done": self.step == self.recipe.steps or self.choice.stopped,
            "identity": self.identity,
        }
        tensors = pack_state(self.trainee.parameters, self.optimiser)
        if self.group.first:
            self.states.save(self.step, tensors, notes, self.choice.step)

    def resume(self) -> None:
        """Goes on from the newest state; a run that was killed before its first one begins."""
        state = self.states.load()
        if state is None:
            return
        with self.states.being_read():
            unpack_state(state.tensors, self.trainee.parameters, self.optimiser)
            self.guard.recall(state.notes["guard"])
            self.choice.recall(state.notes["choice"])
            self.step, self.seconds = state.step, float(state.notes["seconds"])

    def _due(self, every: int) -> bool:
        return every > 0 and self.step % every == 0


def backward(run: TrainingRun) -> tuple[dict[str, float], dict[str, int]]:
    """Losses of the step's batches by signal, and how many `tokens` they have and were `fed`; the
    gradients are left in the parameters."""
    losses, counts = {}, {"tokens": 0, "fed": 0}
    for name in run.recipe.signals:
        losses[name] = _signal_loss(run, name, counts)
    _all_reduce(run, losses, counts)
    return losses, counts


def _signal_loss(run: TrainingRun, name: str, counts: dict[str, int]) -> float:
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


def _all_reduce(run: TrainingRun, losses: dict[str, float], counts: dict[str, int]) -> None:
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


def activation_bytes(run: TrainingRun) -> int:
    """Bytes that the longest rows' forward keeps for the backward pass, each storage once; a run
    that does not fit fails here. The parameters themselves are not counted."""
    return max(_saved_bytes(run, name) for name in run.recipe.signals)


def _saved_bytes(run: TrainingRun, name: str) -> int:
    objective, data = run.recipe.signals[name], run.material[name].train
    rows = (objective.batch_size or run.recipe.batch_size) // run.recipe.accumulate
    longest = sorted(range(len(data.lengths)), key=lambda row: -data.lengths[row])
    batch = data.batch(longest[: max(1, rows // run.group.size)]).to(run.device)
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    seed_everything(run.recipe.seed)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = objective.loss(run.trainee.reader(name), batch)
    # Quantised weights are made of other tensors, and no graph holds them.
    plain = [p for p in map(local_shard, run.trainee.model.parameters()) if not made_of_others(p)]
    weights = {parameter.untyped_storage().data_ptr() for parameter in plain}
    # The graph lives up to here, so that no two storages had one address.
    del loss
    return sum(size for place, size in kept.items() if place not in weights)


class PeakMemory:
    """Memory beyond what was held when it began: of the device, or of this process on a CPU."""

    def __init__(self, device: str) -> None:
        self.device = device if device.startswith("cuda") else None
        if self.device:
            torch.cuda.reset_peak_memory_stats(self.device)
            self.before = torch.cuda.memory_allocated(self.device)
        else:
            import psutil

            self.before = psutil.Process().memory_info().rss

    def bytes(self) -> int:
        """Gradients and the optimiser's moments included."""
        if self.device:
            return torch.cuda.max_memory_allocated(self.device) - self.before
        import resource

        return max(0, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - self.before)
