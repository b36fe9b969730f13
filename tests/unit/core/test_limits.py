"""Code from outside is stopped at its limit of time or memory, in any thread."""

import threading
import time
from contextlib import suppress

import pytest

from otter_cli.core.errors import OtterError
from otter_cli.core.process import resource_limit

HUGE = 1 << 40


def _endless() -> None:
    while True:
        with suppress(Exception):  # code that swallows all errors must stop too
            sum(range(100))


def _doubling() -> None:
    text = "x" * 1000
    while True:
        text += text
        time.sleep(0.01)


def test_an_endless_loop_stops() -> None:
    started = time.monotonic()
    with (
        pytest.raises(OtterError, match=r"a loop takes more than 0\.2 seconds") as caught,
        resource_limit("a loop", seconds=0.2, memory=HUGE, hint="mend it"),
    ):
        _endless()
    assert time.monotonic() - started < 5
    assert caught.value.hint == "mend it"


def test_it_stops_in_a_thread_and_leaves_the_others_alone() -> None:
    found: list[str] = []

    def run() -> None:
        try:
            with resource_limit("a loop", seconds=0.2, memory=HUGE):
                _endless()
        except OtterError as error:
            found.append(error.what)

    threads = [threading.Thread(target=run) for _ in range(3)]
    for thread in threads:
        thread.start()
    with resource_limit("this thread", seconds=60, memory=HUGE):
        for thread in threads:
            thread.join(timeout=20)
    assert found == ["a loop takes more than 0.2 seconds"] * 3


def test_a_text_that_doubles_stops() -> None:
    with (
        pytest.raises(OtterError, match="more than 0 GiB of memory"),
        resource_limit("a text", seconds=30, memory=1 << 27),
    ):
        _doubling()


def test_what_ends_in_time_is_never_stopped_later() -> None:
    """The limit is about the time of the work, which is stopped in the block or not at all."""
    stopped = 0
    for i in range(40):
        try:
            with resource_limit("a sleep", seconds=0.05, memory=HUGE):
                time.sleep(0.04 + i % 5 * 0.005)
        except OtterError:
            stopped += 1
        sum(range(1000))
    assert stopped < 40
    time.sleep(0.2)


def test_errors_of_the_code_pass_as_they_are() -> None:
    with pytest.raises(ZeroDivisionError), resource_limit("a division", seconds=1, memory=HUGE):
        _ = 1 / 0


def test_a_limit_costs_microseconds() -> None:
    started = time.perf_counter()
    for _ in range(1000):
        with resource_limit("nothing", seconds=1, memory=HUGE):
            pass
    assert time.perf_counter() - started < 0.5
