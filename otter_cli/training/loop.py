"""The training loop: steps of the optimiser, evaluations, saved states, early stopping.

`TrainingRun.take_step` is one step. `memory.py` plans the memory that it needs."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.distributed.tensor import DTensor

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
from otter_cli.training.progress_note import SmoothedLoss, metrics_text, progress_note
from otter_cli.training.recipe import Recipe
from otter_cli.training.signal_data import SignalData
from otter_cli.training.state import StateFolder, pack_state, unpack_state
from otter_cli.training.trainable import Trainable

Metrics = dict[str, dict[str, Interval]]
# Gets the number of steps done and, after an evaluation, the metrics. It makes the folder usable.
WriteFolder = Callable[[int, Metrics], None]


@dataclass
class TrainingRun:
    """One training run. `identity`: what a resumed run must have in common with it."""

    trainable: Trainable
    recipe: Recipe
    data: Mapping[str, SignalData]
    states: StateFolder
    identity: dict[str, Any]
    device: str = "cpu"
    group: ProcessGroup = field(default_factory=ProcessGroup)
    step: int = 0
    seconds: float = 0.0
    metrics: Metrics = field(default_factory=dict)
    loss: SmoothedLoss = field(default_factory=SmoothedLoss)
    evaluated_at: int = 0

    def __post_init__(self) -> None:
        self.optimiser = make_optimiser(self.trainable.parameters, self.recipe)
        self.guard = TrainingGuard(self.trainable.parameters, self.trainable.gradient_free)
        self.early_stopping = EarlyStopping(self.recipe)
        # In how many passes a step goes through each signal's rows of this process.
        self.passes = dict.fromkeys(self.recipe.signals, self.recipe.accumulate)

    def train(self, log: MetricsLog, write: WriteFolder) -> None:
        """Trains to the last step. KeyboardInterrupt after Ctrl-C, with everything saved."""
        steps, choosing = self.recipe.steps, self.early_stopping.enabled
        if choosing and self.step == 0:
            self._evaluate_and_keep_best(log)
        bar = progress(steps - self.step, "training", note=self.progress_note)
        with interruptible() as interrupted, bar as advance:
            while self.step < steps and not self.early_stopping.should_stop:
                record = self.take_step()
                log.append(record)
                self.loss.add(weighted_loss(self.recipe, record["loss"]))
                advance(1)
                if any(self.group.all_gather(interrupted())):
                    self.save()
                    write(self.step, {})
                    say(f"stopped after step {self.step} of {steps}; continue with --resume")
                    raise KeyboardInterrupt
                last, due = self.step == steps, self._is_due(self.recipe.evaluate_every)
                if due and choosing:
                    self._evaluate_and_keep_best(log)
                # The state comes before the folder, so that no tensor there is ahead of the state.
                if last or due or self._is_due(self.recipe.save_every):
                    self.save()
                if due and not last:
                    if not choosing:
                        self.evaluate(log)
                    write(self.step, self.metrics)
        self._finish(log, write)

    def progress_note(self) -> str:
        return progress_note(self.loss, self.metrics, self.evaluated_at)

    def take_step(self, rate: float | None = None) -> dict[str, Any]:
        """One step on a batch of every signal:

        batch -> base forward (no graph) -> captured activations -> stream -> head -> loss
        -> gradients -> optimiser

        `rate` replaces the learning rate of the schedule. Returns the record for metrics.jsonl.
        """
        started = time.monotonic()
        losses, counts = {}, {"tokens": 0, "fed": 0}
        for name in self.recipe.signals:
            losses[name] = self._backward(name, counts)
        self._all_reduce(losses, counts)
        loss = weighted_loss(self.recipe, losses)
        gradients, norm = self.guard.check(self.step, loss)
        clip_gradients(gradients, norm, self.recipe.clip)
        rate = learning_rate_at(self.step, self.recipe) if rate is None else rate
        set_learning_rate(self.optimiser, rate)
        self.optimiser.step()
        self.optimiser.zero_grad()
        self.step += 1
        self.seconds += time.monotonic() - started
        return {
            "step": self.step,
            "loss": losses,
            "rate": rate,
            "gradient": norm,
            **counts,
            "seconds": self.seconds,
        }

    def _backward(self, name: str, counts: dict[str, int]) -> float:
        """The loss of one signal on this process's rows. Its gradients are added to the parameters,
        its tokens to `counts` (`fed`: those that went through the model)."""
        objective, data, trainable = self.recipe.signals[name], self.data[name], self.trainable
        total = 0.0
        parts = self.group.micro_batches(data.order.rows(self.step), self.passes[name])
        for number, (rows, share) in enumerate(parts, self.group.rank * len(parts)):
            # Every micro-batch seeds itself, so a resumed run has no random state to restore.
            seed_everything(derive_seed("step", self.recipe.seed, self.step, number))
            batch = data.train.batch(rows).to(self.device)
            # The objective reads the signal at the positions that its loss needs. The first read
            # runs the base without a graph, and the stream on the captured activations with one.
            loss = objective.loss(trainable.reader(name), batch)
            kl = trainable.kl_to_base(batch)
            penalty = 0.0 if kl is None else trainable.kl_weight * kl.mean()
            (share * (objective.weight * loss + penalty)).backward()
            total += share * loss.item()
            if share:
                counts["tokens"] += batch.tokens
                counts["fed"] += trainable.forwarded_tokens(batch)
        return total

    def _all_reduce(self, losses: dict[str, float], counts: dict[str, int]) -> None:
        """Sums losses, counts and gradients over the processes, so that they are the batch's."""
        if self.group.size == 1:
            return
        for parameter in self.trainable.parameters.values():
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        # The backward pass has already summed the gradients of sharded parameters.
        gradients = [
            p.grad
            for p in self.trainable.parameters.values()
            if p.grad is not None and not isinstance(p.grad, DTensor)
        ]
        numbers = torch.tensor([*losses.values(), *counts.values()], device=self.device)
        self.group.all_reduce([*gradients, numbers])
        sums = numbers.tolist()
        losses.update(zip(losses, sums[: len(losses)], strict=True))
        counts.update(zip(counts, map(round, sums[len(losses) :]), strict=True))

    def _evaluate_and_keep_best(self, log: MetricsLog) -> None:
        """Evaluates on validation rows, and keeps the parameters if they are the best so far."""
        self.evaluate(log)
        if self.early_stopping.update(self.step, self.metrics):
            tensors = pack_state(self.trainable.parameters)
            if self.group.is_first:
                self.states.save_best(self.step, tensors)

    def _finish(self, log: MetricsLog, write: WriteFolder) -> None:
        """Restores the best step if one was chosen, evaluates on test data, writes the folder."""
        best = self.early_stopping.best_step
        if best is not None:
            self.group.barrier()  # until the first process has written it
            with self.states.reading_errors(best_step=best):
                unpack_state(self.states.load_best(best), self.trainable.parameters)
            stopped = " (no better one since)" if self.early_stopping.should_stop else ""
            say(
                f"of {self.step} steps the best is {best}{stopped}: {self.recipe.best} "
                f"{self.early_stopping.best_value:.4f} on validation rows"
            )
        self.evaluate(log, last=True)
        write(self.step if best is None else best, self.metrics)

    def evaluate(self, log: MetricsLog, *, last: bool = False) -> None:
        """Metrics of every signal with held-out rows: test rows at the end; before that validation
        rows, where there are any."""
        started = time.monotonic()
        self.metrics = {}
        for name, objective in self.recipe.signals.items():
            data = self.data[name]
            held_out = data.test if last else data.validation or data.test
            if held_out is not None:
                self.metrics[name] = evaluate(
                    objective,
                    self.trainable.signals[name],
                    self.trainable.reader(name),
                    held_out,
                    max(1, self.batch_rows(name) // self.passes[name]),
                    self.device,
                    self.group,
                    self.trainable.kl_to_base,
                )
        self.evaluated_at = self.step
        shown = f"held out: {metrics_text(self.metrics)}" if self.metrics else ""
        parts = [part for part in (str(self.loss), shown) if part]
        say(f"step {self.step} of {self.recipe.steps}: {'; '.join(parts) or 'nothing held out'}")
        log.append(
            {
                "step": self.step,
                "evaluation": {
                    n: {w: vars(v) for w, v in f.items()} for n, f in self.metrics.items()
                },
                "evaluation_seconds": time.monotonic() - started,
            }
        )

    def batch_rows(self, name: str) -> int:
        """The rows of a signal's batch, over all processes."""
        return self.recipe.signals[name].batch_size or self.recipe.batch_size

    def save(self) -> None:
        metadata = {
            "step": self.step,
            "seconds": self.seconds,
            "guard": self.guard.state_dict(),
            "choice": self.early_stopping.state_dict(),
            "done": self.step == self.recipe.steps or self.early_stopping.should_stop,
            "identity": self.identity,
        }
        tensors = pack_state(self.trainable.parameters, self.optimiser)
        if self.group.is_first:
            self.states.save(self.step, tensors, metadata, self.early_stopping.best_step)

    def resume(self) -> None:
        """Continues from the newest state. A run that was killed before its first state starts
        again."""
        state = self.states.load()
        if state is None:
            return
        with self.states.reading_errors():
            unpack_state(state.tensors, self.trainable.parameters, self.optimiser)
            self.guard.load_state_dict(state.metadata["guard"])
            self.early_stopping.load_state_dict(state.metadata["choice"])
            self.step, self.seconds = state.step, float(state.metadata["seconds"])

    def _is_due(self, every: int) -> bool:
        return every > 0 and self.step % every == 0


def weighted_loss(recipe: Recipe, losses: Mapping[str, float]) -> float:
    """The loss of all signals together."""
    return sum(recipe.signals[name].weight * loss for name, loss in losses.items())
