"""Which evaluation was the best so far, and whether it is time to stop looking for a better one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from otter_cli.core.errors import OtterError
from otter_cli.core.suggest import closest

if TYPE_CHECKING:
    from otter_cli.core.intervals import Interval
    from otter_cli.training.recipe import Recipe


@dataclass
class Choice:
    """`step` of the best evaluation, its `figure`, and how many came `since`; of a recipe without
    `best` none is chosen."""

    recipe: Recipe
    step: int | None = None
    figure: float | None = None
    since: int = 0

    @property
    def wanted(self) -> bool:
        return self.recipe.best is not None

    @property
    def stopped(self) -> bool:
        return self.recipe.patience is not None and self.since >= self.recipe.patience

    def see(self, step: int, metrics: Mapping[str, Mapping[str, Interval]]) -> bool:
        """Whether this evaluation is better than all before it."""
        assert self.recipe.best is not None
        signal, _, metric = self.recipe.best.partition("/")
        figures = metrics[signal]
        if metric not in figures:
            near = closest(metric, figures)
            raise OtterError(
                f"best: {signal} has no metric {metric!r}",
                hint=(f"did you mean {near!r}? " if near else "") + f"it has {', '.join(figures)}",
            )
        figure = figures[metric].mean
        smaller_is_better = metric.startswith(("squared_error", "nats"))
        gain = 0.0 if self.figure is None else figure - self.figure
        if self.figure is None or (gain < 0 if smaller_is_better else gain > 0):
            self.step, self.figure, self.since = step, figure, 0
            return True
        self.since += 1
        return False

    def notes(self) -> dict[str, Any]:
        return {"step": self.step, "figure": self.figure, "since": self.since}

    def recall(self, notes: Mapping[str, Any]) -> None:
        self.step, self.figure, self.since = notes["step"], notes["figure"], notes["since"]


def check_choice(recipe: Recipe) -> None:
    """Raises OtterError where `best` or `patience` lacks what it needs."""
    if recipe.best is None:
        if recipe.patience is not None:
            raise OtterError(
                "patience is without best", hint="say by which figure: best: SIGNAL/METRIC"
            )
        return
    signal = recipe.best.partition("/")[0]
    if signal not in recipe.signals:
        raise OtterError(
            f"best: {recipe.best!r} is of no signal that is trained",
            hint=f"SIGNAL/METRIC, of {', '.join(recipe.signals)}",
        )
    if recipe.signals[signal].validation is None:
        raise OtterError(
            f"best: signals.{signal} has no validation rows to choose by",
            hint="validation: 0.05 sets some training rows aside; chosen by the test data, its "
            "figures would flatter",
        )
    if not recipe.evaluate_every:
        raise OtterError("best without evaluate_every", hint="for example evaluate_every: 50")
