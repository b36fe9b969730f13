"""Messages and progress for people, on stderr. stdout is for data."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING

from otter_cli.core.formatting import seconds_text
from otter_cli.core.processor_share import PROCESSOR_SHARE

if TYPE_CHECKING:
    from rich.console import Console


Advance = Callable[[int], None]
Note = Callable[[], str]

_SECONDS_BETWEEN_LINES = 15.0
_quiet = False


def set_quiet(quiet: bool) -> None:
    """Silence messages and progress. Warnings are still shown."""
    global _quiet
    _quiet = quiet


@cache
def console() -> "Console":
    """The only rich console on stderr, created on first use."""
    from otter_cli.core.safe_console import SafeConsole

    return SafeConsole(stderr=True)


def say(text: str) -> None:
    if not _quiet:
        console().print(text, soft_wrap=True)


def warn(text: str) -> None:
    console().print(f"warning: {text}", soft_wrap=True, style="yellow")


def _no_note() -> str:
    return ""


@contextmanager
def progress(
    total: int,
    label: str,
    *,
    first: float = _SECONDS_BETWEEN_LINES,
    note: Note = _no_note,
    bar: bool = True,
) -> Iterator[Advance]:
    """Yields a function that takes the work done since its last call. Shows a bar on a terminal, a
    line every 15 s in a log, and nothing when quiet. `first`: seconds until a log's first line.
    `note` gives a text to show beside the progress, such as the loss. Without `bar`, a terminal
    gets lines as well.

    A warning, also when quiet, says that other programs make the work take several times as long.
    """
    PROCESSOR_SHARE.start()
    with _shown_progress(total, label, first, note, bar) as advance:

        def advance_and_check(count: int) -> None:
            advance(count)
            if warning := PROCESSOR_SHARE.warning():
                warn(warning)

        yield advance_and_check


@contextmanager
def _shown_progress(
    total: int, label: str, first: float, note: Note, bar: bool
) -> Iterator[Advance]:
    if _quiet or total <= 0:
        yield lambda count: None
    elif bar and console().is_terminal:
        with _progress_bar(total, label, note) as advance:
            yield advance
    else:
        yield _LogProgress(total, label, first, note).advance


@contextmanager
def _progress_bar(total: int, label: str, note: Note) -> Iterator[Advance]:
    from rich import progress as rich_progress

    columns = (
        rich_progress.TextColumn("{task.description}", markup=False),
        rich_progress.BarColumn(),
        rich_progress.TaskProgressColumn(),
        rich_progress.TimeRemainingColumn(),
        rich_progress.TextColumn("{task.fields[note]}", markup=False),
    )
    with rich_progress.Progress(*columns, console=console(), transient=True) as bars:
        task = bars.add_task(label, total=total, note="")
        yield lambda count: bars.update(task, advance=count, note=note())


class _LogProgress:
    """Progress in a log: nothing for short work, and a line every 15 s for long work."""

    def __init__(self, total: int, label: str, first: float, note: Note) -> None:
        self.total = total
        self.label = label
        self.note = note
        self.done = 0
        self.started = time.monotonic()
        self.next_line = self.started + first

    def advance(self, count: int) -> None:
        self.done += count
        now = time.monotonic()
        if now < self.next_line or not self.done:
            return
        self.next_line = now + _SECONDS_BETWEEN_LINES
        left = (now - self.started) * max(self.total - self.done, 0) / self.done
        note = f"; {text}" if (text := self.note()) else ""
        share = f"{100 * self.done / self.total:.0f} %"
        say(f"{self.label}: {share}, {seconds_text(left)} left{note}")
