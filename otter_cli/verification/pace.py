"""How far a verification is, and whether it must end early. No torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import monotonic

from otter_cli.core.console import Advance, progress

INTERRUPTED = "interrupted"
SPENT = "the budget is spent"
_FIRST_LINE = 2.0  # seconds: the first estimate of the time that is left


class Pace:
    """`stopped` is why the run ends early, empty while it goes on. Levels look between two runs."""

    def __init__(
        self,
        interrupted: Callable[[], bool] = lambda: False,
        budget: float = 0.0,
        started: float | None = None,
    ) -> None:
        self._interrupted = interrupted
        begun = monotonic() if started is None else started
        self._end = begun + budget if budget else None
        self._advance: Advance = lambda count: None
        self._why = ""

    @property
    def left(self) -> float:
        """Seconds until the budget is spent; infinite without one."""
        return float("inf") if self._end is None else max(self._end - monotonic(), 0.0)

    @property
    def stopped(self) -> str:
        if not self._why and self._interrupted():
            self._why = INTERRUPTED
        if not self._why and not self.left:
            self._why = SPENT
        return self._why

    @contextmanager
    def showing(self, total: int) -> Iterator[None]:
        """Progress over so much work, for a person."""
        with progress(total, "verifying", first=_FIRST_LINE) as self._advance:
            yield

    def done(self, work: int) -> None:
        self._advance(work)
