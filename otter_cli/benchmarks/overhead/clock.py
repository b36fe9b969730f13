"""Times of contestants in turns, so that whatever else the machine does disturbs all alike."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from otter_cli.decoding import Generation

Step = Callable[[], Any]
Times = dict[str, np.ndarray]  # seconds, [rounds]
WARM_UP = 3


@dataclass(frozen=True)
class Timed:
    """Seconds of a token, or of a pass, which the rows share; a batch's first row, if any."""

    seconds: float
    generation: Generation | None = None


def interleaved(
    steps: Mapping[str, Step],
    repeats: int,
    *,
    synchronise: Callable[[], None],
    seen: Callable[[Mapping[str, Any]], None] = lambda outputs: None,
    warm_up: int = WARM_UP,
) -> Times:
    """Every step once a round, each round begun by another one; warm-up rounds are left out.

    `seen` gets what the steps of a round returned, outside the time.
    """
    names, rounds = list(steps), []
    with _no_collections():
        for number in range(warm_up + repeats):
            first = number % len(names)
            seconds, outputs = {}, {}
            for name in names[first:] + names[:first]:
                synchronise()
                started = time.perf_counter()
                outputs[name] = steps[name]()
                synchronise()
                seconds[name] = time.perf_counter() - started
            seen(outputs)
            if number >= warm_up:
                rounds.append(seconds)
    return {name: np.array([seconds[name] for seconds in rounds]) for name in names}


def synchroniser(device: str) -> Callable[[], None]:
    """Waits until the device has done what it was given; a CPU has already."""
    if not device.startswith("cuda"):
        return lambda: None
    import torch

    return lambda: torch.cuda.synchronize(device)


@contextmanager
def _no_collections() -> Iterator[None]:
    """A collection in one contestant's step would be paid by it for the garbage of all."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
