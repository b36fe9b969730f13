"""What this machine reaches, measured in the run that it bounds: bytes and operations a second."""

from __future__ import annotations

import platform
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict

from otter_cli.benchmarks.overhead.clock import synchroniser
from otter_cli.benchmarks.overhead.work import Work
from otter_cli.core.provenance import hardware

if TYPE_CHECKING:
    import torch

# Beyond any cache of a processor, and a product large enough for its best rate.
_STREAMED_BYTES = 2**29
_SQUARE = 2048
_TRIES = 5


class Rates(BaseModel):
    """Best of several tries: a bound is not to be beaten because something else ran."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    bytes_per_second: float
    flops_per_second: float

    def seconds(self, work: Work) -> float:
        """The least time for that work: the longer of moving it and computing it."""
        return max(work.bytes / self.bytes_per_second, work.flops / self.flops_per_second)

    def limit(self, work: Work) -> str:
        moving = work.bytes / self.bytes_per_second
        return "bytes" if moving >= work.flops / self.flops_per_second else "flops"

    def best(self, other: Rates) -> Rates:
        return Rates(
            bytes_per_second=max(self.bytes_per_second, other.bytes_per_second),
            flops_per_second=max(self.flops_per_second, other.flops_per_second),
        )


def measure_rates(dtype: torch.dtype, device: str, *, scale: float = 1.0) -> Rates:
    """A matrix streamed through a product with one vector, and a product of square matrices; both
    smaller by `scale` for a smoke run."""
    import torch

    square = max(64, int(_SQUARE * scale))
    rows = max(64, int(_STREAMED_BYTES * scale) // (8192 * dtype.itemsize))
    matrix = torch.ones(rows, 8192, dtype=dtype, device=device)
    vector = torch.ones(8192, dtype=dtype, device=device)
    one, other = (torch.ones(square, square, dtype=dtype, device=device) for _ in range(2))
    with torch.no_grad():
        streamed = _best(lambda: matrix @ vector, device)
        summed = _best(lambda: matrix.sum(dtype=torch.float32), device)
        multiplied = _best(lambda: one @ other, device)
    return Rates(
        bytes_per_second=matrix.numel() * dtype.itemsize / min(streamed, summed),
        flops_per_second=2 * square**3 / multiplied,
    )


def machine_name() -> str:
    """A name without an owner: `cpu-2-cores-avx512`, or the accelerator's."""
    found = hardware()
    if found["accelerators"]:
        return re.sub(r"[^a-z0-9]+", "-", found["accelerators"][0].lower()).strip("-")
    return f"cpu-{found['cores']}-cores-{_vectors()}"


def _vectors() -> str:
    info = Path("/proc/cpuinfo")
    flags = set(info.read_text().split()) if info.exists() else set()
    known = {"amx_tile": "amx", "avx512f": "avx512", "avx2": "avx2", "asimd": "neon"}
    return next((name for flag, name in known.items() if flag in flags), platform.machine())


def _best(run: Callable[[], object], device: str) -> float:
    synchronise = synchroniser(device)
    seconds = []
    for _ in range(_TRIES + 1):
        synchronise()
        started = time.perf_counter()
        run()
        synchronise()
        seconds.append(time.perf_counter() - started)
    return min(seconds[1:])
