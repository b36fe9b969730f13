"""What every group of measurements works on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from otter_cli.benchmarks.overhead.clock import synchroniser
from otter_cli.benchmarks.overhead.machine import Rates
from otter_cli.benchmarks.overhead.result import Settings
from otter_cli.benchmarks.overhead.subject import Subject, insert
from otter_cli.insertion import Plan

if TYPE_CHECKING:
    from otter_cli.signals import SignalConfig


@dataclass(frozen=True)
class Bench:
    """A loaded subject with the settings and rates of its run."""

    subject: Subject
    settings: Settings
    rates: Rates

    @property
    def synchronise(self) -> Callable[[], None]:
        return synchroniser(self.settings.device)

    @property
    def rounds(self) -> int:
        """For contestants that take many passes a round."""
        return max(3, self.settings.repeats // 10)

    def with_signals(self, *texts: str) -> Subject:
        """The first insertion again, on the same weights, with other signals."""
        plan = self.subject.plans[0]
        config = plan.config.model_copy(update={"signals": signals_of(texts)})
        return insert(self.subject.name, self.subject.stock, Plan(config, plan.shape))


def signals_of(texts: Sequence[str]) -> tuple[SignalConfig, ...]:
    from otter_cli.signals import parse_signal

    return tuple(parse_signal(text) for text in texts)
