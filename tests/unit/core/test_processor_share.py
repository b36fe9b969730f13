"""The warning that other programs use the processor: when it comes, and what it advises."""

from __future__ import annotations

from pathlib import Path

import pytest

from otter_cli.core import console, processor_share
from otter_cli.core.processor_share import ProcessorShare, read_thread_times, slowdown


def write_task(tasks: Path, thread: int, ran: float, waited: float) -> None:
    (tasks / str(thread)).mkdir(parents=True, exist_ok=True)
    (tasks / str(thread) / "schedstat").write_text(f"{int(ran * 1e9)} {int(waited * 1e9)} 77\n")


def test_times_are_read_by_thread(tmp_path: Path) -> None:
    write_task(tmp_path, 5, 1.5, 0.25)
    write_task(tmp_path, 6, 2.0, 0.0)
    (tmp_path / "7").mkdir()  # it ended while the list was read
    assert read_thread_times(tmp_path) == {"5": (1.5, 0.25), "6": (2.0, 0.0)}
    assert read_thread_times(tmp_path / "nowhere") == {}


def test_this_system_s_own_times_grow_with_work() -> None:
    before = read_thread_times()
    if not before:
        pytest.skip("this kernel does not count how long threads wait")
    sum(number * number for number in range(300_000))
    assert sum(t[0] for t in read_thread_times().values()) > sum(t[0] for t in before.values())


def test_slowdown_is_wanted_over_got() -> None:
    before = {"1": (10.0, 5.0), "2": (1.0, 0.0)}
    after = {"1": (12.0, 9.0), "3": (2.0, 2.0)}  # thread 2 ended, thread 3 is new
    assert slowdown(before, after) == pytest.approx((4 + 6) / 4)
    assert slowdown(after, after) is None
    # A thread that only slept: sixteen threads, one of which works, are not slow.
    idle = {str(n): (0.0, 0.0) for n in range(16)}
    assert slowdown(idle, {**idle, "0": (10.0, 0.0)}) == 1.0


def watched(rows: list[tuple[float, float]]) -> list[str | None]:
    """The warnings of a loop whose step every 10 s gets these times of running and waiting."""
    states = iter(
        [
            {"1": (sum(r for r, _ in rows[:n]), sum(w for _, w in rows[:n]))}
            for n in range(len(rows) + 1)
        ]
    )
    clock = iter(range(0, 10_000, 11))
    share = ProcessorShare(lambda: next(states), lambda: float(next(clock)))
    share.start()
    return [share.warning() for _ in rows]


def test_one_warning_with_the_cure() -> None:
    quiet, busy = (10.0, 0.1), (3.0, 8.0)
    assert watched([quiet, quiet]) == [None, None]
    first, *rest = watched([busy, busy, busy])
    assert first and "3.7 times its processor time" in first and "programs" in first
    assert rest == [None, None]


@pytest.mark.parametrize(
    ("threads", "policy", "cure"),
    [(2, "", "OMP_NUM_THREADS=1"), (1, "", "end other programs"), (2, "active", "unset OMP_WAIT")],
)
def test_the_cure_fits_the_process(
    monkeypatch: pytest.MonkeyPatch, threads: int, policy: str, cure: str
) -> None:
    import torch

    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    monkeypatch.setenv("OMP_WAIT_POLICY", policy)
    assert cure in (watched([(3.0, 8.0)])[0] or "")


@pytest.mark.parametrize("quiet", [False, True])
def test_every_progress_warns(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], quiet: bool
) -> None:
    share = ProcessorShare(
        iter([{"1": (0.0, 0.0)}, {"1": (2.0, 6.0)}]).__next__, iter([0.0, 1.0, 20.0, 20.0]).__next__
    )
    monkeypatch.setattr(console, "PROCESSOR_SHARE", share)
    console.set_quiet(quiet)
    with console.progress(3, "training") as advance:
        advance(1)
        assert "warning" not in capsys.readouterr().err
        advance(1)
        advance(1)
    console.set_quiet(False)
    assert capsys.readouterr().err.count("4.0 times its processor time") == 1
    assert processor_share.PROCESSOR_SHARE is not share
