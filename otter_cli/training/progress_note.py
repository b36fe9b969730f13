"""What the progress of a training run shows: the smoothed loss, and the latest held-out metric."""

from __future__ import annotations

from collections.abc import Mapping

from otter_cli.core.intervals import Interval

_DECAY = 0.9  # about the last ten steps


class SmoothedLoss:
    """A moving average of the loss, without the pull of its start at zero."""

    def __init__(self) -> None:
        self._mean, self._count = 0.0, 0

    def add(self, loss: float) -> float:
        self._count += 1
        self._mean = _DECAY * self._mean + (1 - _DECAY) * loss
        return self.value

    @property
    def value(self) -> float:
        return self._mean / (1 - _DECAY**self._count) if self._count else 0.0

    def __str__(self) -> str:
        return f"smoothed loss {self.value:.3f}" if self._count else ""


def metrics_text(metrics: Mapping[str, Mapping[str, Interval]], *, first_only: bool = False) -> str:
    """Each signal with its held-out metrics, or with the first of them."""
    parts = []
    for name, figures in metrics.items():
        shown = list(figures.items())[: 1 if first_only else None]
        parts.append(f"{name} " + ", ".join(f"{w} {value.mean:.3f}" for w, value in shown))
    return "; ".join(parts)


def progress_note(
    loss: SmoothedLoss, metrics: Mapping[str, Mapping[str, Interval]], evaluated_at: int
) -> str:
    """Such as "smoothed loss 0.412; held out at step 50: reward accuracy 0.731"."""
    held_out = metrics_text(metrics, first_only=True)
    return f"{loss}; held out at step {evaluated_at}: {held_out}" if held_out else str(loss)
