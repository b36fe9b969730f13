"""Poison: inserted tensors filled with values that would show in whatever they reach."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from otter_cli.core.console import progress
from otter_cli.model import OtterForCausalLM
from otter_cli.verification.cases import Case
from otter_cli.verification.pair import Pair
from otter_cli.verification.run import run

VALUES = ("nan", "inf", "-inf", "1e30", "denormal")


@dataclass(frozen=True)
class PoisonResult:
    """One tensor at a time: how many runs left the logits alone, and the first that did not."""

    case: Case
    tensors: int
    values: tuple[str, ...]
    equal: int
    moved: tuple[str, str] | None  # tensor, value

    @property
    def runs(self) -> int:
        return self.tensors * len(self.values)

    def record(self) -> dict[str, Any]:
        moved = self.moved and {"tensor": self.moved[0], "value": self.moved[1]}
        return {**vars(self), "case": self.case.record(), "runs": self.runs, "moved": moved}


def fill(tensors: Iterable[Tensor], value: str) -> None:
    with torch.no_grad():
        for tensor in tensors:
            tensor.fill_(number(value, tensor.dtype))


@contextmanager
def poisoned(tensor: Tensor, value: str) -> Iterator[None]:
    """Fills `tensor` inside, and puts its own values back."""
    kept = tensor.detach().clone()
    fill([tensor], value)
    try:
        yield
    finally:
        with torch.no_grad():
            tensor.copy_(kept)


def number(value: str, dtype: torch.dtype) -> float:
    """`denormal` is half of the dtype's smallest normal number; 1e30 is infinite in float16."""
    if value == "denormal":
        return torch.finfo(dtype).smallest_normal / 2
    wanted = float(value)
    return math.copysign(math.inf, wanted) if abs(wanted) > torch.finfo(dtype).max else wanted


def poison_each(
    pair: Pair, otter: OtterForCausalLM, case: Case, values: tuple[str, ...]
) -> PoisonResult:
    """Each inserted tensor in turn, so that none hides behind the NaN of another."""
    expected = run(case, pair.base).digests()
    equal, moved = 0, None
    named = list(otter.inserted_parameters())
    with progress(len(named), "poisoning each tensor") as advance:
        for name, tensor in named:
            for value in values:
                with poisoned(tensor, value):
                    same = run(case, pair.other).digests() == expected
                equal += same
                if not same and moved is None:
                    moved = (name, value)
            advance(1)
    return PoisonResult(case, len(named), values, equal, moved)
