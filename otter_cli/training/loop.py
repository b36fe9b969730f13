"""The loop: a forward of the frozen base, and gradients in the trainee's own parameters alone."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from otter_cli.core.console import progress, say
from otter_cli.core.intervals import Interval
from otter_cli.core.jsonlines import JsonLines
from otter_cli.core.seeds import derive_seed, seed_everything
from otter_cli.training.evaluate import evaluate
from otter_cli.training.guards import Guard, clip
from otter_cli.training.interrupt import interruptible
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
    step: int = 0
    seconds: float = 0.0
    metrics: Metrics = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.optimiser = make_optimiser(self.trainee.parameters, self.recipe)
        self.guard = Guard(self.trainee.parameters, self.trainee.gradient_free)

    def go(self, log: JsonLines, write: Write) -> None:
        """Trains to the last step. KeyboardInterrupt after Ctrl-C, with everything saved."""
        steps, every = self.recipe.steps, self.recipe.evaluate_every
        with interruptible() as interrupted, progress(steps - self.step, "training") as advance:
            while self.step < steps:
                log.append(self.take_step())
                advance(1)
                if interrupted():
                    self.save()
                    write(self.step, {})
                    say(f"stopped after step {self.step} of {steps}: --resume goes on")
                    raise KeyboardInterrupt
                last = self.step == steps
                # Before the folder is written, so that no tensor there is ahead of the state.
                if last or self._due(self.recipe.save_every) or self._due(every):
                    self.save()
                if self._due(every) and not last:
                    self.evaluate(log)
                    write(self.step, self.metrics)
        self.evaluate(log)
        write(self.step, self.metrics)

    def take_step(self) -> dict[str, Any]:
        """A batch of every signal, then one move of the parameters."""
        began = time.monotonic()
        # Nothing random is carried from step to step, so a resumed run has nothing to restore.
        seed_everything(derive_seed("step", self.recipe.seed, self.step))
        rate = rate_at(self.step, self.recipe)
        set_rate(self.optimiser, rate)
        losses, total, tokens = {}, 0.0, 0
        for name, objective in self.recipe.signals.items():
            batch = self.material[name].batch(self.step).to(self.device)
            loss = objective.loss(self.trainee.reader(name), batch)
            (objective.weight * loss).backward()
            losses[name] = loss.item()
            total += objective.weight * losses[name]
            tokens += batch.tokens
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
            "tokens": tokens,
            "seconds": self.seconds,
        }

    def evaluate(self, log: JsonLines) -> None:
        """Held-out figures of every signal that has test data."""
        began = time.monotonic()
        self.metrics = {
            name: evaluate(
                objective,
                self.trainee.signals[name],
                self.trainee.reader(name),
                test,
                objective.batch_size or self.recipe.batch_size,
                self.device,
            )
            for name, objective in self.recipe.signals.items()
            if (test := self.material[name].test) is not None
        }
        for name, figures in self.metrics.items():
            told = ", ".join(f"{what} {value.mean:.3f}" for what, value in figures.items())
            say(f"step {self.step}: {name} {told}")
        log.append(
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
            "identity": self.identity,
        }
        self.states.save(self.step, pack(self.trainee.parameters, self.optimiser), notes)

    def resume(self) -> None:
        """Goes on from the newest state; a run that was killed before its first one begins."""
        state = self.states.load()
        if state is None:
            return
        unpack(state.tensors, self.trainee.parameters, self.optimiser)
        self.guard.recall(state.notes["guard"])
        self.step, self.seconds = state.step, state.notes["seconds"]

    def _due(self, every: int) -> bool:
        return every > 0 and self.step % every == 0
