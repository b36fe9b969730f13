"""Where the extra time goes: operations of a pass with the insertion and without it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from otter_cli.benchmarks.metrics.estimates import Estimate
from otter_cli.benchmarks.overhead.measured_models import OverheadRun
from otter_cli.benchmarks.overhead.measuring import WARM_UP
from otter_cli.benchmarks.overhead.prefill_decode import (
    BASE,
    GRAFT,
    base_contestant,
    decode_step,
    graft_contestant,
    prefill_step,
    random_tokens,
)
from otter_cli.benchmarks.overhead.result import MeasuredGroup, MeasuredLine

_PROFILED_STEPS = 10
_SHOWN_OPERATIONS = 14


def profile_groups(run: OverheadRun) -> list[MeasuredGroup]:
    """A prefill and decoding steps under torch.profiler: each operation's own time, without the
    operations that it calls. Python's time is in no operation."""
    import torch

    settings = run.settings
    prompt = random_tokens(run.models, settings.batch, settings.context, "prompt")
    tokens = random_tokens(run.models, settings.batch, WARM_UP + _PROFILED_STEPS, "following")
    contestants = {
        BASE: base_contestant(run.models.stock),
        GRAFT: graft_contestant(run.models.graft),
    }
    decoding, prefill = {}, {}
    with torch.no_grad():
        for name, contestant in contestants.items():
            step = decode_step(contestant, prompt, tokens)
            decoding[name] = _profiled_times(step, run, _PROFILED_STEPS)
        for name, contestant in contestants.items():
            prefill[name] = _profiled_times(prefill_step(contestant, prompt), run, 3)
    return [
        _profile_group("Profile of a decoding step", "token", decoding),
        _profile_group("Profile of a prefill", "prefill", prefill),
    ]


OperationTimes = dict[str, tuple[float, float]]  # milliseconds and calls per step


def _profiled_times(step: Callable[[], Any], run: OverheadRun, count: int) -> OperationTimes:
    from torch.profiler import ProfilerActivity, profile

    cuda = run.settings.device.startswith("cuda")
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    for _ in range(WARM_UP):
        step()
    run.synchronise()
    with profile(activities=activities) as profiler:
        for _ in range(count):
            step()
        run.synchronise()
    times = {}
    for event in profiler.key_averages():
        microseconds = event.self_device_time_total if cuda else event.self_cpu_time_total
        times[event.key] = (microseconds / 1000 / count, event.count / count)
    return times


def _profile_group(title: str, per: str, times: dict[str, OperationTimes]) -> MeasuredGroup:
    """The operations whose time differs most between graft and base."""
    not_run = (0.0, 0.0)
    lines = []
    for name in times[BASE] | times[GRAFT]:
        base, base_calls = times[BASE].get(name, not_run)
        graft, calls = times[GRAFT].get(name, not_run)
        figures: dict[str, float | Estimate] = {
            "base, ms": base,
            "extra, ms": graft - base,
            "calls": calls,
            "base, calls": base_calls,
        }
        lines.append(MeasuredLine(name=name, milliseconds=graft, figures=figures))

    def extra(line: MeasuredLine) -> float:
        return line.milliseconds - times[BASE].get(line.name, not_run)[0]

    lines.sort(key=lambda line: -abs(extra(line)))
    shown, rest = lines[:_SHOWN_OPERATIONS], lines[_SHOWN_OPERATIONS:]
    note = (
        f"Extra: {sum(map(extra, lines)):.2f} ms in all, {sum(map(extra, rest)):.2f} ms of it in "
        "operations not shown. The profiler makes every operation slower."
    )
    return MeasuredGroup(title=title, reference=BASE, per=per, notes=[note], lines=shown)
