"""Where the extra time goes: operations of a decoding step, with the insertion and without."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from otter_cli.benchmarks.overhead import prefill_decode
from otter_cli.benchmarks.overhead.measured_models import OverheadRun
from otter_cli.benchmarks.overhead.measuring import WARM_UP
from otter_cli.benchmarks.overhead.prefill_decode import BASE, GRAFT, random_tokens
from otter_cli.benchmarks.overhead.result import MeasuredGroup, MeasuredLine

_PROFILED_STEPS = 10
_SHOWN_OPERATIONS = 14


def profile_groups(bench: OverheadRun) -> list[MeasuredGroup]:
    """A prefill and decoding steps by torch.profiler, by the time that each operation takes itself;
    what is not in an operation is Python, and the profiler's own."""
    import torch

    subject, settings = bench.subject, bench.settings
    prompt = random_tokens(subject, settings.batch, settings.context, "prompt")
    tokens = random_tokens(subject, settings.batch, WARM_UP + _PROFILED_STEPS, "following")
    contestants = {
        BASE: prefill_decode.base_contestant(subject.stock),
        GRAFT: prefill_decode.graft_contestant(subject.graft),
    }
    with torch.no_grad():
        decoding = {
            name: _profiled_times(
                prefill_decode.decode_step(contestant, prompt, tokens), bench, _PROFILED_STEPS
            )
            for name, contestant in contestants.items()
        }
        filling = {
            name: _profiled_times(prefill_decode.prefill_step(contestant, prompt), bench, 3)
            for name, contestant in contestants.items()
        }
    return [
        _profile_group("Profile of a decoding step", "token", decoding),
        _profile_group("Profile of a prefill", "prefill", filling),
    ]


OperationTimes = dict[str, tuple[float, float]]  # milliseconds and calls a step


def _profiled_times(step: Callable[[], Any], bench: OverheadRun, count: int) -> OperationTimes:
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as record

    cuda = bench.settings.device.startswith("cuda")
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    for _ in range(WARM_UP):
        step()
    bench.synchronise()
    with record(activities=activities) as profiler:
        for _ in range(count):
            step()
        bench.synchronise()
    found = {}
    for event in profiler.key_averages():
        spent = event.self_device_time_total if cuda else event.self_cpu_time_total
        found[event.key] = (spent / 1000 / count, event.count / count)
    return found


def _profile_group(title: str, per: str, found: dict[str, OperationTimes]) -> MeasuredGroup:
    base, graft = found[BASE], found[GRAFT]
    nothing = (0.0, 0.0)
    extra = {
        name: graft.get(name, nothing)[0] - base.get(name, nothing)[0] for name in base | graft
    }
    shown = sorted(extra, key=lambda name: -abs(extra[name]))[:_SHOWN_OPERATIONS]
    lines = [
        MeasuredLine(
            name=name,
            milliseconds=graft.get(name, nothing)[0],
            figures={
                "base, ms": base.get(name, nothing)[0],
                "extra, ms": extra[name],
                "calls": graft.get(name, nothing)[1],
                "base, calls": base.get(name, nothing)[1],
            },
        )
        for name in shown
    ]
    rest = sum(value for name, value in extra.items() if name not in shown)
    note = (
        f"Extra: {sum(extra.values()):.2f} ms in all, {rest:.2f} ms of it in operations not shown. "
        "Under the profiler every operation takes longer than without it."
    )
    return MeasuredGroup(title=title, reference=BASE, per=per, notes=[note], lines=lines)
