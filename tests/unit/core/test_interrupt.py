"""The first Ctrl-C is remembered, the second interrupts at once."""

import os
import signal
import threading

import pytest

from otter_cli.core.process import interruptible


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_is_remembered(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with interruptible() as interrupted:
        assert not interrupted()
        os.kill(os.getpid(), number)
        assert interrupted()
    assert signal.getsignal(number) is before


def test_the_second_is_obeyed() -> None:
    with interruptible():
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_a_thread_trains_without_handlers() -> None:
    answers = []

    def run() -> None:
        with interruptible() as interrupted:
            answers.append(interrupted())

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert answers == [False]
