"""Planted faults: insertions that change their base, or that differ from what they declare."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from otter_cli.model.forward_context import ACTIVE_CONTEXT, INSIDE_INSERTION
from otter_cli.model.otter import OtterForCausalLM

# A changed base state h [batch, tokens, hidden], given h and the stream z; None: no change.
Change = Callable[[Tensor, Tensor], Tensor | None]
When = Callable[[OtterForCausalLM, Tensor, dict[str, Any]], bool]


def always(model: OtterForCausalLM, h: Tensor, named: dict[str, Any]) -> bool:
    return True


def after_position(limit: int) -> When:
    # By shapes: an operation on position_ids would be one that the base does not run.
    return lambda model, h, named: named["past_key_values"].layers[0].keys.shape[-2] - 1 > limit


def in_cached_steps(model: OtterForCausalLM, h: Tensor, named: dict[str, Any]) -> bool:
    cached: int = named["past_key_values"].layers[0].keys.shape[-2]
    return cached > h.shape[1]


def in_batches(model: OtterForCausalLM, h: Tensor, named: dict[str, Any]) -> bool:
    return h.shape[0] > 1


def under_sdpa(model: OtterForCausalLM, h: Tensor, named: dict[str, Any]) -> bool:
    return bool(model.base.config._attn_implementation == "sdpa")


def leak(change: Change, when: When = always) -> Callable[[OtterForCausalLM], None]:
    """A fault: layer 1 returns the result of `change` when the stream is on and `when` is true."""

    def plant(model: OtterForCausalLM) -> None:
        def hook(module: nn.Module, inputs: Any, named: dict[str, Any], h: Tensor) -> Any:
            record = ACTIVE_CONTEXT.get()
            if record is None or not when(model, h, named):
                return None
            return change(h, record.streams["main"])

        layer = model.base.get_submodule("model.layers.1")
        layer.register_forward_hook(hook, with_kwargs=True)

    return plant


def add(scale: float) -> Change:
    return lambda h, z: h + scale * z.mean(-1, keepdim=True)


def add_in_place(h: Tensor, z: Tensor) -> None:
    h.add_(1e-3 * z.mean(-1, keepdim=True))


def add_in_place_inside(h: Tensor, z: Tensor) -> None:
    """A mistake in the code of an insertion."""
    token = INSIDE_INSERTION.set(True)
    try:
        h.add_(1e-3 * z.mean(-1, keepdim=True))
    finally:
        INSIDE_INSERTION.reset(token)


def scale_by_number(h: Tensor, z: Tensor) -> Tensor:
    """A change by a Python number, which no trace of tensor operations sees."""
    return h * (1 + 1e-9 * float(z.mean()))


def scale_by_numpy(h: Tensor, z: Tensor) -> Tensor:
    return h * (1 + 1e-9 * float(z.numpy().mean()))


def norm_over_both(h: Tensor, z: Tensor) -> Tensor:
    """The norm of the wide state [h ; z] instead of the norm of h."""
    wide = torch.cat([h, z], -1)
    return h * wide.pow(2).mean(-1, keepdim=True).add(1e-6).rsqrt()


def draw_numbers(h: Tensor, z: Tensor) -> None:
    """Noise from the generator that sampling uses."""
    token = INSIDE_INSERTION.set(True)
    try:
        torch.rand(3)
    finally:
        INSIDE_INSERTION.reset(token)


def unchanged_but_rerun(h: Tensor, z: Tensor) -> Tensor:
    """An operation that the base does not run, although it reads nothing of the stream."""
    return h + 0.0


def plant(monkeypatch: pytest.MonkeyPatch, fault: Callable[[OtterForCausalLM], None]) -> None:
    """Gives the fault to every graft that is loaded from now on."""
    load = OtterForCausalLM.from_pretrained.__func__  # type: ignore[attr-defined]

    def from_pretrained(cls: Any, *arguments: Any, **named: Any) -> OtterForCausalLM:
        model: OtterForCausalLM = load(cls, *arguments, **named)
        fault(model)
        return model

    monkeypatch.setattr(OtterForCausalLM, "from_pretrained", classmethod(from_pretrained))


def flip_bit(path: Path, tensor: str) -> None:
    """Flips one bit of one element of a base's tensor. A linked file becomes a copy first."""
    from otter_cli.checkpoint.safetensors_reader import read_header

    header = read_header(path)
    at = header.data_start + header.tensors[tensor].start + 8
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.unlink()
    path.write_bytes(content)
