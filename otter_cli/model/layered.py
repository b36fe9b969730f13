"""`x W^h (+ b)` of all layers at once, where the streams run after the base: METHOD, 1."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from otter_cli.model.branch import AttentionTap, BranchTap
from otter_cli.model.joint import Joint, OfBase, Weights, rows

if TYPE_CHECKING:
    from otter_cli.model.stream import InsertedLayer


class Layered:
    """The products of an insertion that read the base, in four for all of its layers: a CPU spreads
    a batched product over its threads, and runs a row times one matrix on one."""

    def __init__(self, layers: Sequence[InsertedLayer]) -> None:
        self.layers = layers
        self.products = [
            Batched([joint for joint in joints if joint is not None])
            for joints in zip(*(layer.joints for layer in layers), strict=True)
        ]

    def __call__(self, taps: Sequence[tuple[AttentionTap, BranchTap]]) -> Sequence[OfBase]:
        """By layer; empty ones where layers are missing, lie on several devices, or have hooks to
        be called before they are read."""
        devices = {attention.normed.device for attention, _ in taps}
        hooked = any(layer._forward_pre_hooks for layer in self.layers)
        if len(taps) < len(self.layers) or len(devices) > 1 or hooked:
            return [OfBase()] * len(taps)
        heads, out, units, down = self.products
        made = (
            heads([attention.normed for attention, _ in taps]),
            out([attention.part for attention, _ in taps]),
            units([ffn.normed for _, ffn in taps]),
            down([ffn.part for _, ffn in taps]),
        )
        return [OfBase(*each) for each in zip(*made, strict=True)]


class Batched:
    """One product of every layer. W^h of all lies in one storage [layers, outputs, d], of which the
    layers' packed weights are views, and the named parameters of these."""

    def __init__(self, joints: Sequence[Joint]) -> None:
        self.joints = joints
        self._packed: list[Weights] = []
        self._of_x: Tensor | None = None

    def __call__(self, inputs: Sequence[Tensor | None]) -> Sequence[Tensor | None]:
        """[n, outputs] of every layer; inputs [.., d]."""
        if not self.joints:
            return [None] * len(inputs)
        given = [one for one in inputs if one is not None]
        if len({one.ndim for one in given}) > 1:  # sparse layers among dense ones, say
            given = [rows(one) for one in given]
        of_x = self.pack()
        x = torch.cat(given).to(of_x.dtype).view(len(given), -1, of_x.shape[1])
        bias = [bias for _, _, bias in self._packed if bias is not None]
        if bias:
            return torch.baddbmm(torch.stack(bias).unsqueeze(1), x, of_x).unbind()
        return torch.bmm(x, of_x).unbind()

    def pack(self) -> Tensor:
        """W^h of all layers, [layers, d, outputs]."""
        held = len(self._packed) == len(self.joints) and not any(
            joint.packed is not packed
            for joint, packed in zip(self.joints, self._packed, strict=True)
        )
        if not held or self._of_x is None:
            with torch.inference_mode(False), torch.no_grad():
                self._of_x = self._pack()
        return self._of_x

    def _pack(self) -> Tensor:
        one = self.joints[0].weights()[0]
        place = one.new_empty(len(self.joints), *one.t().shape)
        self._packed = [
            joint.pack_into(part) for joint, part in zip(self.joints, place, strict=True)
        ]
        return place.transpose(1, 2)

    def __getstate__(self) -> dict[str, Sequence[Joint]]:
        # A copy's joints pack their own.
        return {"joints": self.joints}

    def __setstate__(self, state: dict[str, Sequence[Joint]]) -> None:
        Batched.__init__(self, **state)
