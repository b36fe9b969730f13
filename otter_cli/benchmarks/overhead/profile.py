"""Where the extra time goes: operations of a decoding step, with the insertion and without."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from otter_cli.benchmarks.overhead import passes
from otter_cli.benchmarks.overhead.bench import Bench
from otter_cli.benchmarks.overhead.clock import WARM_UP
from otter_cli.benchmarks.overhead.costs import BASE, GRAFT, random_tokens
from otter_cli.benchmarks.overhead.result import Group, Line

_STEPS = 10
_SHOWN = 14


def profile(bench: Bench) -> list[Group]:
    """A prefill and decoding steps by torch.profiler, by the time that each operation takes itself;
    what is not in an operation is Python, and the profiler's own."""
    import torch

    subject, settings = bench.subject, bench.settings
    prompt = random_tokens(subject, settings.batch, settings.context, "prompt")
    tokens = random_tokens(subject, settings.batch, WARM_UP + _STEPS, "following")
    contestants = {
        BASE: passes.stock_base(subject.stock),
        GRAFT: passes.grafted(subject.graft),
    }
    with torch.no_grad():
        decoding = {n: _times(passes.decode(c, prompt, tokens), bench, _STEPS)
                    for n, c in contestants.items()}  # fmt: skip
        filling = {n: _times(passes.prefill(c, prompt), bench, 3)
                   for n, c in contestants.items()}  # fmt: skip
    return [
        _group("Profile of a decoding step", "token", decoding),
        _group("Profile of a prefill", "prefill", filling),
    ]


Operations = dict[str, tuple[float, float]]  # milliseconds and calls a step


def _times(step: Callable[[], Any], bench: Bench, count: int) -> Operations:
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


def _group(title: str, per: str, found: dict[str, Operations]) -> Group:
    base, graft = found[BASE], found[GRAFT]
    nothing = (0.0, 0.0)
    extra = {
        name: graft.get(name, nothing)[0] - base.get(name, nothing)[0] for name in base | graft
    }
    shown = sorted(extra, key=lambda name: -abs(extra[name]))[:_SHOWN]
    lines = [
        Line(
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
    return Group(title=title, reference=BASE, per=per, notes=[note], lines=lines)
