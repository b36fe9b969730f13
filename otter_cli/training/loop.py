"""The loop: a forward of the frozen base, and gradients in the trainee's own parameters alone."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from otter_cli.core.console import progress, say
from otter_cli.core.intervals import Interval
from otter_cli.training.choice import Choice
from otter_cli.training.evaluate import evaluate
from otter_cli.training.gradients import backward
from otter_cli.training.group import Group
from otter_cli.training.guards import Guard, clip
from otter_cli.training.interrupt import interruptible
from otter_cli.training.journal import Journal
from otter_cli.training.material import Material
from otter_cli.training.recipe import Recipe
from otter_cli.training.schedule import make_optimiser, rate_at, set_rate
from otter_cli.training.state import StateFolder, pack, unpack
from otter_cli.training.trainee import Trainee

Metrics = dict[str, dict[str, Interval]]
# Told the steps done and, after an evaluation, the figures: it makes the folder usable.
Write = Callable[[int, Metrics], None]


@dataclass
class Run:
    """One training run. `identity` is what a resumed run must have in common with it."""

    trainee: Trainee
    recipe: Recipe
    material: Mapping[str, Material]
    states: StateFolder
    identity: dict[str, Any]
    device: str = "cpu"
    group: Group = field(default_factory=Group)
    step: int = 0
    seconds: float = 0.0
    metrics: Metrics = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.optimiser = make_optimiser(self.trainee.parameters, self.recipe)
        self.guard = Guard(self.trainee.parameters, self.trainee.gradient_free)
        self.choice = Choice(self.recipe)

    def go(self, journal: Journal, write: Write) -> None:
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
        rate = rate_at(self.step, self.recipe) if rate is None else rate
        set_rate(self.optimiser, rate)
        losses, counts = backward(self)
        total = sum(self.recipe.signals[name].weight * loss for name, loss in losses.items())
        gradients, norm = self.guard.check(self.step, total)
        clip(gradients, norm, self.recipe.clip)
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

    def _choose(self, journal: Journal) -> None:
        """Evaluates on validation rows; the best step's parameters are kept."""
        self.evaluate(journal)
        if self.choice.see(self.step, self.metrics):
            tensors = pack(self.trainee.parameters)
            if self.group.first:
                self.states.keep(self.step, tensors)

    def _finish(self, journal: Journal, write: Write) -> None:
        """The parameters of the best step, or of the last; their figures on test data."""
        at = self.step
        if self.choice.step is not None:
            at = self.choice.step
            self.group.wait()  # until the first has written it
            with self.states.being_read(kept=at):
                unpack(self.states.kept(at), self.trainee.parameters)
            stopped = " (no better one since)" if self.choice.stopped else ""
            say(
                f"of {self.step} steps the best is {at}{stopped}: {self.recipe.best} "
                f"{self.choice.figure:.4f} on validation rows"
            )
        self.evaluate(journal, last=True)
        write(at, self.metrics)

    def evaluate(self, journal: Journal, *, last: bool = False) -> None:
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
        tensors = pack(self.trainee.parameters, self.optimiser)
        if self.group.first:
            self.states.save(self.step, tensors, notes, self.choice.step)

    def resume(self) -> None:
        """Goes on from the newest state; a run that was killed before its first one begins."""
        state = self.states.load()
        if state is None:
            return
        with self.states.being_read():
            unpack(state.tensors, self.trainee.parameters, self.optimiser)
            self.guard.recall(state.notes["guard"])
            self.choice.recall(state.notes["choice"])
            self.step, self.seconds = state.step, float(state.notes["seconds"])

    def _due(self, every: int) -> bool:
        return every > 0 and self.step % every == 0
