"""The numerical difference between a wide export and its graft, measured on a small batch."""

from __future__ import annotations

import gc
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from otter_cli.checkpoint.folder import Checkpoint
from otter_cli.core.formatting import bytes_text
from otter_cli.core.process import derive_seed
from otter_cli.model.load import stored_dtype
from otter_cli.model.otter import OtterForCausalLM
from otter_cli.model.wide import load_wide

ROWS, TOKENS = 4, 64
# How far a signal may be off, in units of its largest value (or of one): some tens of roundings,
# for inserted weights are stored in the base's dtype there, and sums run in another order.
TOLERANCES = {torch.float64: 1e-6, torch.float32: 1e-4, torch.float16: 0.02, torch.bfloat16: 0.1}


@dataclass(frozen=True)
class SignalDifference:
    """The largest difference, and the largest absolute value that it is to be seen against;
    `lost` are numbers in the graft alone."""

    largest: float
    scale: float
    tolerance: float
    lost: int

    @property
    def within(self) -> bool:
        return not self.lost and self.largest <= self.tolerance * max(1.0, self.scale)


@dataclass(frozen=True)
class WideDifference:
    """Over one batch of random tokens in one dtype: `moved` of `logits` do not equal the base's,
    by `largest` at most; `flipped` of `tokens` have another argmax; `lost` are no numbers any
    more, as where the inserted part overflows."""

    dtype: str
    tokens: int
    logits: int
    moved: int
    largest: float
    flipped: int
    lost: int
    signals: dict[str, SignalDifference]

    @property
    def within(self) -> bool:
        return not self.lost and all(signal.within for signal in self.signals.values())


def measure_all_dtypes(graft: Path, wide: Path) -> tuple[list[WideDifference], dict[str, str]]:
    """In fp32 and in bf16, and the reason where this machine has no memory for one of them."""
    import psutil

    parameters = sum(info.count for info in Checkpoint.open(wide).tensors.values())
    measured, skipped = [], {}
    for dtype in (torch.float32, torch.bfloat16):
        need, free = parameters * dtype.itemsize, psutil.virtual_memory().available
        if need > free:
            skipped[_dtype_name(dtype)] = (
                f"needs {bytes_text(need)} of memory, {bytes_text(free)} is free"
            )
        else:
            measured.append(measure_difference(graft, wide, dtype))
    return measured, skipped


def measure_difference(graft: Path, wide: Path, dtype: torch.dtype) -> WideDifference:
    """Runs the graft, then the export: one model is in memory at a time."""
    additive = OtterForCausalLM.from_pretrained(graft, dtype=dtype)
    tokens = _random_tokens(additive)
    with torch.no_grad():
        expected = additive(tokens)
    del additive
    gc.collect()
    stored = stored_dtype(Checkpoint.open(wide))
    tolerance = max(TOLERANCES[dtype], TOLERANCES[stored])
    with torch.no_grad():
        got = load_wide(wide, dtype=dtype)(tokens)
    assert expected.logits is not None
    return compare_outputs(expected.logits, got.logits, expected.signals, got.signals, tolerance)


def compare_outputs(
    logits: Tensor,
    others: Tensor,
    signals: Mapping[str, Tensor],
    other_signals: Mapping[str, Tensor],
    tolerance: float,
) -> WideDifference:
    """The export's outputs (second and fourth) against the graft's; logits [..., vocab]."""
    return WideDifference(
        dtype=_dtype_name(logits.dtype),
        tokens=logits[..., 0].numel(),
        logits=logits.numel(),
        moved=int((logits != others).sum()),
        largest=_largest_gap(logits, others),
        flipped=int((logits.argmax(-1) != others.argmax(-1)).sum()),
        lost=_count_lost(logits, others),
        signals={
            name: SignalDifference(
                _largest_gap(signal, other_signals[name]),
                _largest_gap(signal, torch.zeros_like(signal)),
                tolerance,
                _count_lost(signal, other_signals[name]),
            )
            for name, signal in signals.items()
        },
    )


def _largest_gap(one: Tensor, other: Tensor) -> float:
    """Over what is a number in both."""
    gap = (one.double() - other.double()).abs()
    return float(gap[gap.isfinite()].max()) if gap.isfinite().any() else 0.0


def _count_lost(one: Tensor, other: Tensor) -> int:
    return int((one.isfinite() & ~other.isfinite()).sum())


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _random_tokens(model: OtterForCausalLM) -> Tensor:
    generator = torch.Generator().manual_seed(derive_seed("wide export"))
    length = min(TOKENS, model.shape.max_positions)
    return torch.randint(model.shape.vocab, (ROWS, length), generator=generator)
