"""Poison: inserted tensors filled with NaN, infinities and other values, to show their reach."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from otter_cli.model.otter import OtterForCausalLM
from otter_cli.verification.agenda import TimeBudget, estimated_tokens
from otter_cli.verification.case_runner import ModelPair, OutputDigests, run_case
from otter_cli.verification.grid import Case

POISON_VALUES = ("nan", "inf", "-inf", "1e30", "denormal")
_LAYER = re.compile(r"\.layers\.(\d+)\.")


@dataclass(frozen=True)
class PoisonResult:
    """One tensor at a time: how many runs left the logits alone, and the first that did not.

    `together`: groups of tensors, each the same tensor of many layers, that were poisoned together
    because the layers are of one kind; `tensors` counts every tensor once."""

    case: Case
    tensors: int
    values: tuple[str, ...]
    equal: int
    moved: tuple[str, str] | None  # tensor, value

    together: int = 0
    grouped: int = 0  # tensors in those groups

    @property
    def runs(self) -> int:
        return (self.tensors - self.grouped + self.together) * len(self.values)

    def record(self) -> dict[str, Any]:
        moved = self.moved and {"tensor": self.moved[0], "value": self.moved[1]}
        return {**vars(self), "case": self.case.record(), "runs": self.runs, "moved": moved}


def fill_with(tensors: Iterable[Tensor], value: str) -> None:
    with torch.no_grad():
        for tensor in tensors:
            tensor.fill_(poison_number(value, tensor.dtype))


@contextmanager
def poisoned(tensor: Tensor, value: str) -> Iterator[None]:
    """Fills `tensor` inside, and puts its own values back."""
    kept = tensor.detach().clone()
    fill_with([tensor], value)
    try:
        yield
    finally:
        with torch.no_grad():
            tensor.copy_(kept)


def poison_number(value: str, dtype: torch.dtype) -> float:
    """`denormal` is half of the dtype's smallest normal number; 1e30 is infinite in float16."""
    if value == "denormal":
        return torch.finfo(dtype).smallest_normal / 2
    wanted = float(value)
    return math.copysign(math.inf, wanted) if abs(wanted) > torch.finfo(dtype).max else wanted


def poison_each(
    pair: ModelPair,
    otter: OtterForCausalLM,
    case: Case,
    values: tuple[str, ...],
    *,
    layers: Collection[int] | None = None,
    pace: TimeBudget | None = None,
) -> PoisonResult:
    """Each inserted tensor in turn, so that none hides behind the NaN of another. `layers`: outside
    of these, the same tensor of all layers is one group, which is poisoned together."""
    pace, expected = pace or TimeBudget(), run_case(case, pair.base).digests()
    equal, tried, moved = 0, [], None
    for group in poison_groups([name for name, _ in otter.inserted_parameters()], layers):
        if pace.stopped:
            break
        tried.append(group)
        for value in values:
            same = _logits_unchanged(pair, otter, case, group, value, expected)
            equal += same
            if not same and moved is None:
                moved = (_culprit(pair, otter, case, group, value, expected), value)
        pace.done(estimated_tokens(case) * len(values))
    shared = [group for group in tried if len(group) > 1]
    return PoisonResult(
        case,
        tensors=sum(map(len, tried)),
        values=values,
        equal=equal,
        moved=moved,
        together=len(shared),
        grouped=sum(map(len, shared)),
    )


def poison_groups(names: Iterable[str], layers: Collection[int] | None) -> list[list[str]]:
    """The tensors that are poisoned together, by name."""
    groups: dict[str, list[str]] = {}
    for name in names:
        found = _LAYER.search(name)
        alone = layers is None or found is None or int(found.group(1)) in layers
        key = name if alone or found is None else _LAYER.sub(".layers.*.", name, count=1)
        groups.setdefault(key, []).append(name)
    return list(groups.values())


def _logits_unchanged(
    pair: ModelPair,
    otter: OtterForCausalLM,
    case: Case,
    group: Collection[str],
    value: str,
    expected: OutputDigests,
) -> bool:
    """Whether the case gives the base's bits while the tensors of the group hold the value."""
    with ExitStack() as stack:
        for name, tensor in otter.inserted_parameters():
            if name in group:
                stack.enter_context(poisoned(tensor, value))
        return run_case(case, pair.other).digests() == expected


def _culprit(
    pair: ModelPair,
    otter: OtterForCausalLM,
    case: Case,
    group: list[str],
    value: str,
    expected: OutputDigests,
) -> str:
    """The tensor of a group that moves logits by itself; where none does, the group's first."""
    alone = (
        name for name in group if not _logits_unchanged(pair, otter, case, [name], value, expected)
    )
    return group[0] if len(group) == 1 else next(alone, group[0])
