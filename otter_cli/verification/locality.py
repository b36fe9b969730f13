"""Locality of a stream that reads the base's keys and values (METHOD, 1): z_t depends on no z_s.

So what is poisoned at s shows at s alone, and a signal that is switched on late reads what it
would have read all along.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from otter_cli.model import OtterForCausalLM
from otter_cli.model.stream import Insertion
from otter_cli.verification.bits import same_bits
from otter_cli.verification.cases import Case
from otter_cli.verification.poison import VALUES, number
from otter_cli.verification.run import Inputs, draw_inputs, setting

_LATE = 5  # steps after which a signal is switched on


@dataclass(frozen=True)
class Locality:
    """How many comparisons were made of one insertion, and where the first one failed."""

    insertion: str
    case: Case
    compared: int
    failure: str | None

    def record(self) -> dict[str, Any]:
        return {**vars(self), "case": self.case.record()}


def check_locality(otter: OtterForCausalLM, case: Case) -> list[Locality]:
    """One result for each insertion that claims to be local; none where none does."""
    return [
        _check(otter, name, insertion, case)
        for name, insertion in otter.insertions.items()
        if isinstance(insertion, Insertion)
        and insertion.config.kv == "base"
        and insertion.config.hidden
    ]


def _check(otter: OtterForCausalLM, name: str, insertion: Insertion, case: Case) -> Locality:
    compared = 0
    with setting(case, otter.base):
        inputs = draw_inputs(case, otter.base.config.vocab_size)
        clean = _states(otter, name, inputs)
        for position in (0, case.length // 2):
            for value in VALUES:
                with _poisoned_start(insertion, position, value):
                    found = _states(otter, name, inputs)
                compared += 1
                if moved := _moved(clean, found, position + 1):
                    what = f"{moved} moved by {value} in the stream at {position}"
                    return Locality(name, case, compared, what)
        always, late = (_last_step(otter, name, inputs, since) for since in (0, _LATE))
        moved = _moved(always, late, 0)
        failure = f"{moved} differs when switched on late" if moved else None
    return Locality(name, case, compared + 1, failure)


def _states(otter: OtterForCausalLM, name: str, inputs: Inputs) -> dict[str, Tensor]:
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


def _last_step(otter: OtterForCausalLM, name: str, inputs: Inputs, since: int) -> dict[str, Tensor]:
    """Steps of one token over one cache, the stream on from step `since`; the last one's states."""
    cache = otter.new_cache()
    for index, token in enumerate(inputs.tokens[0, : _LATE + 1]):
        step = {"input_ids": token.view(1, 1), "past_key_values": cache, "use_cache": True}
        if index < since:
            otter.base(**step)
        else:
            with otter.streaming() as record:
                otter.base(**step)
    return _read(otter, name, record)


def _moved(clean: dict[str, Tensor], found: dict[str, Tensor], start: int) -> str | None:
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
        bad = torch.full_like(first[:, :1], number(value, first.dtype))
        return torch.cat([first[:, :position], bad, first[:, position + 1 :]], 1)

    insertion.start = poisoned  # type: ignore[method-assign]
    try:
        yield
    finally:
        del insertion.start
