"""Memory that a call needs at its peak above what was there before it, in bytes of tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import accumulate
from typing import Any


def peak_above(run: Callable[[], object], device: str) -> int:
    """By the allocator's own count: on a GPU its peak, on a CPU every allocation of torch."""
    import torch

    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        run()
        torch.cuda.synchronize(device)
        return int(torch.cuda.max_memory_allocated(device)) - before
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    return _peak(profiler.profiler.kineto_results.events())


def _peak(events: Iterable[Any]) -> int:
    changes = [(e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]"]
    return max(accumulate((change for _, change in sorted(changes)), initial=0))
