"""Locality of a stream that reads the base's keys and values: z_t depends on no other z_s.

What is poisoned at position s must show at s alone, and a signal that is switched on late must
read what it would have read from the start."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from otter_cli.model.insertion import Insertion
from otter_cli.model.otter import OtterForCausalLM
from otter_cli.verification.bits import same_bits
from otter_cli.verification.case_runner import CaseInputs, case_setting, draw_inputs
from otter_cli.verification.grid import Case
from otter_cli.verification.poison import POISON_VALUES, poison_number

_LATE_STEP = 5  # steps after which a signal is switched on


@dataclass(frozen=True)
class LocalityResult:
    """How many comparisons were made of one insertion, and where the first one failed."""

    insertion: str
    case: Case
    compared: int
    failure: str | None

    def record(self) -> dict[str, Any]:
        return {**vars(self), "case": self.case.record()}


def check_locality(otter: OtterForCausalLM, case: Case) -> list[LocalityResult]:
    """One result for each insertion that claims to be local; none where none does."""
    return [
        _check(otter, name, insertion, case)
        for name, insertion in otter.insertions.items()
        if isinstance(insertion, Insertion)
        and insertion.config.kv == "base"
        and insertion.config.hidden
    ]


def _check(otter: OtterForCausalLM, name: str, insertion: Insertion, case: Case) -> LocalityResult:
    compared = 0
    with case_setting(case, otter.base):
        inputs = draw_inputs(case, otter.base.config.vocab_size)
        clean = _states(otter, name, inputs)
        for position in (0, case.length // 2):
            for value in POISON_VALUES:
                with _poisoned_start(insertion, position, value):
                    found = _states(otter, name, inputs)
                compared += 1
                if moved := _first_moved(clean, found, position + 1):
                    what = f"{moved} moved by {value} in the stream at {position}"
                    return LocalityResult(name, case, compared, what)
        always, late = (_last_step(otter, name, inputs, since) for since in (0, _LATE_STEP))
        moved = _first_moved(always, late, 0)
        failure = f"{moved} differs when switched on late" if moved else None
    return LocalityResult(name, case, compared + 1, failure)


def _states(otter: OtterForCausalLM, name: str, inputs: CaseInputs) -> dict[str, Tensor]:
    with otter.streaming() as record:
        otter.base(input_ids=inputs.tokens)
    return _read(otter, name, record)


def _read(otter: OtterForCausalLM, name: str, record: Any) -> dict[str, Tensor]:
    """The stream's last state and every signal of insertion `name`, [1, positions, ...]."""
    config = next(c for c in otter.manifest.insertions if c.name == name)
    signals = {
        f"signal {s.name}": otter.read_signal(s.name, record.base_state, record.inserted_state)
        for s in config.signals
    }
    return {"the stream": record.inserted_state[name], **signals}


def _last_step(
    otter: OtterForCausalLM, name: str, inputs: CaseInputs, since: int
) -> dict[str, Tensor]:
    """Steps of one token over one cache, the stream on from step `since`; the last one's states."""
    cache = otter.new_cache()
    for index, token in enumerate(inputs.tokens[0, : _LATE_STEP + 1]):
        step = {"input_ids": token.view(1, 1), "past_key_values": cache, "use_cache": True}
        if index < since:
            otter.base(**step)
        else:
            with otter.streaming() as record:
                otter.base(**step)
    return _read(otter, name, record)


def _first_moved(clean: dict[str, Tensor], found: dict[str, Tensor], start: int) -> str | None:
    """The first of the states that differs at or after position `start`."""
    for name, states in clean.items():
        if not same_bits(states[:, start:], found[name][:, start:]):
            return name
    return None


@contextmanager
def _poisoned_start(insertion: Insertion, position: int, value: str) -> Iterator[None]:
    """Inside, the stream of `insertion` begins with `value` at one position."""
    start = insertion.start

    def poisoned(*arguments: Any, **named: Any) -> Tensor:
        first = start(*arguments, **named)
        bad = torch.full_like(first[:, :1], poison_number(value, first.dtype))
        return torch.cat([first[:, :position], bad, first[:, position + 1 :]], 1)

    insertion.start = poisoned  # type: ignore[method-assign]
    try:
        yield
    finally:
        del insertion.start
