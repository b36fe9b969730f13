"""Poison: NaN, infinities and other values put where only the stream may read them.

`poison_each` fills inserted tensors one after the other: no logit of the base may change.
`check_locality` fills the stream at one position: with `kv: base`, nothing later may change, and a
signal that is switched on late must read what it would have read from the start (docs/method.md,
"Reading the base").
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from otter_cli.model.otter import OtterForCausalLM
from otter_cli.model.stream import Insertion
from otter_cli.verification.agenda import TimeBudget, estimated_tokens
from otter_cli.verification.bits import same_bits
from otter_cli.verification.case_runner import (
    CaseInputs,
    ModelPair,
    case_setting,
    draw_inputs,
    run_case,
)
from otter_cli.verification.grid import Case

POISON_VALUES = ("nan", "inf", "-inf", "1e30", "denormal")
_LAYER = re.compile(r"\.layers\.(\d+)\.")
_LATE_STEP = 5  # steps before a signal is switched on


@dataclass(frozen=True)
class PoisonResult:
    """How many runs left the logits unchanged, and the first (tensor, value) that did not.

    `tensors` counts every tensor once. `together` counts groups that were poisoned at once, each of
    one tensor in many layers of the same kind, and `grouped` the tensors in these groups.
    """

    case: Case
    tensors: int
    values: tuple[str, ...]
    equal: int
    moved: tuple[str, str] | None
    together: int = 0
    grouped: int = 0

    @property
    def runs(self) -> int:
        return (self.tensors - self.grouped + self.together) * len(self.values)

    def record(self) -> dict[str, Any]:
        moved = self.moved and {"tensor": self.moved[0], "value": self.moved[1]}
        return {**asdict(self), "runs": self.runs, "moved": moved}


@dataclass(frozen=True)
class LocalityResult:
    """How many comparisons were made of one insertion, and where the first one failed."""

    insertion: str
    case: Case
    compared: int
    failure: str | None


def poison_number(value: str, dtype: torch.dtype) -> float:
    """The number of a poison value. `denormal` is half of the smallest normal number of `dtype`.
    1e30 is infinite in float16."""
    if value == "denormal":
        return torch.finfo(dtype).smallest_normal / 2
    number = float(value)
    return math.copysign(math.inf, number) if abs(number) > torch.finfo(dtype).max else number


def fill_with(tensors: Iterable[Tensor], value: str) -> None:
    with torch.no_grad():
        for tensor in tensors:
            tensor.fill_(poison_number(value, tensor.dtype))


@contextmanager
def poisoned(tensor: Tensor, value: str) -> Iterator[None]:
    """Inside, `tensor` is filled with `value`. Its own values are restored afterwards."""
    original = tensor.detach().clone()
    fill_with([tensor], value)
    try:
        yield
    finally:
        with torch.no_grad():
            tensor.copy_(original)


def poison_each(
    pair: ModelPair,
    otter: OtterForCausalLM,
    case: Case,
    values: tuple[str, ...],
    *,
    layers: Collection[int] | None = None,
    budget: TimeBudget | None = None,
) -> PoisonResult:
    """Poisons the inserted tensors in turn, so that none hides behind the NaN of another.

    Outside of `layers`, a tensor is poisoned together with its namesakes in the other layers.
    """
    budget = budget or TimeBudget()
    expected = run_case(case, pair.base).digests()

    def is_unchanged(names: Collection[str], value: str) -> bool:
        with ExitStack() as stack:
            for name, tensor in otter.inserted_parameters():
                if name in names:
                    stack.enter_context(poisoned(tensor, value))
            return run_case(case, pair.candidate).digests() == expected

    equal, moved, groups = 0, None, []
    for group in poison_groups([name for name, _ in otter.inserted_parameters()], layers):
        if budget.stop_reason:
            break
        groups.append(group)
        for value in values:
            unchanged = is_unchanged(group, value)
            equal += unchanged
            if not unchanged and moved is None:
                moved = _culprit(group, value, is_unchanged), value
        budget.advance(estimated_tokens(case) * len(values))
    shared = [group for group in groups if len(group) > 1]
    return PoisonResult(
        case,
        tensors=sum(map(len, groups)),
        values=values,
        equal=equal,
        moved=moved,
        together=len(shared),
        grouped=sum(map(len, shared)),
    )


def poison_groups(names: Iterable[str], layers: Collection[int] | None) -> list[list[str]]:
    """The names of tensors that are poisoned together. Those of `layers` are alone, and without
    `layers` all are."""
    groups: dict[str, list[str]] = {}
    for name in names:
        layer = _LAYER.search(name)
        shared = layers is not None and layer is not None and int(layer.group(1)) not in layers
        key = _LAYER.sub(".layers.*.", name, count=1) if shared else name
        groups.setdefault(key, []).append(name)
    return list(groups.values())


def _culprit(
    group: list[str], value: str, is_unchanged: Callable[[Collection[str], str], bool]
) -> str:
    """The first tensor of a group that changes logits by itself, else the first of the group."""
    if len(group) == 1:
        return group[0]
    return next((name for name in group if not is_unchanged([name], value)), group[0])


def check_locality(otter: OtterForCausalLM, case: Case) -> list[LocalityResult]:
    """One result for each insertion with a stream and `kv: base`, the insertions that are local."""
    return [
        _check_insertion(otter, name, insertion, case)
        for name, insertion in otter.insertions.items()
        if isinstance(insertion, Insertion)
        and insertion.config.kv == "base"
        and insertion.config.hidden
    ]


def _check_insertion(
    otter: OtterForCausalLM, name: str, insertion: Insertion, case: Case
) -> LocalityResult:
    compared = 0
    with case_setting(case, otter.base):
        inputs = draw_inputs(case, otter.base.config.vocab_size)
        clean = _prefill_states(otter, name, inputs)
        for position in (0, case.length // 2):
            for value in POISON_VALUES:
                with _poisoned_start(insertion, position, value):
                    states = _prefill_states(otter, name, inputs)
                compared += 1
                if moved := _first_difference(clean, states, position + 1):
                    what = f"{moved} moved by {value} in the stream at {position}"
                    return LocalityResult(name, case, compared, what)
        always, late = (_last_step_states(otter, name, inputs, start) for start in (0, _LATE_STEP))
        moved = _first_difference(always, late, 0)
        failure = f"{moved} differs when switched on late" if moved else None
    return LocalityResult(name, case, compared + 1, failure)


def _prefill_states(otter: OtterForCausalLM, name: str, inputs: CaseInputs) -> dict[str, Tensor]:
    with otter.streaming() as context:
        otter.base(input_ids=inputs.tokens)
    return _states(otter, name, context)


def _last_step_states(
    otter: OtterForCausalLM, name: str, inputs: CaseInputs, start: int
) -> dict[str, Tensor]:
    """The states of the last of several one-token steps over one cache, with the stream on from
    step `start`."""
    cache = otter.new_cache()
    for index, token in enumerate(inputs.tokens[0, : _LATE_STEP + 1]):
        step = {"input_ids": token.view(1, 1), "past_key_values": cache, "use_cache": True}
        if index < start:
            otter.base(**step)
        else:
            with otter.streaming() as context:
                otter.base(**step)
    return _states(otter, name, context)


def _states(otter: OtterForCausalLM, name: str, context: Any) -> dict[str, Tensor]:
    """The stream's last state and every signal of insertion `name`, each [1, positions, ...]."""
    config = next(c for c in otter.manifest.insertions if c.name == name)
    signals = {
        f"signal {s.name}": otter.read_signal(s.name, context.base_state, context.inserted_state)
        for s in config.signals
    }
    return {"the stream": context.inserted_state[name], **signals}


def _first_difference(
    expected: dict[str, Tensor], states: dict[str, Tensor], start: int
) -> str | None:
    """The name of the first state that differs at or after position `start`."""
    return next(
        (
            name
            for name, clean in expected.items()
            if not same_bits(clean[:, start:], states[name][:, start:])
        ),
        None,
    )


@contextmanager
def _poisoned_start(insertion: Insertion, position: int, value: str) -> Iterator[None]:
    """Inside, the stream of `insertion` starts with `value` at one position."""
    start = insertion.start

    def poisoned_start(*arguments: Any, **kwargs: Any) -> Tensor:
        z = start(*arguments, **kwargs)
        bad = torch.full_like(z[:, :1], poison_number(value, z.dtype))
        return torch.cat([z[:, :position], bad, z[:, position + 1 :]], 1)

    insertion.start = poisoned_start  # type: ignore[method-assign]
    try:
        yield
    finally:
        del insertion.start
