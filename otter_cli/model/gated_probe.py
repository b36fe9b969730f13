"""A gated linear probe of a frozen base: the control without a stream.

It reads the states after every layer, or what goes into every layer's output products. The score
of a prefix is a gated mean over its tokens."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn

from otter_cli.core.errors import OtterError
from otter_cli.families.shape import BaseShape

ProbeInputs = Literal["states", "branches"]


class GatedProbe:
    """In SWIFT's manner: the score of a prefix is the gated mean of its tokens' own,
    `sum g_s r_s / sum g_s` over s <= t, with `r_s = <w, f_s> + b` and
    `g_s = sigmoid(<w_g, f_s> + b_g)`.

    f_s: the states h after each layer (`states`), or what goes into each layer's output products,
    attention outputs a and FFN activations m (`branches`); each brought to rms 1.
    """

    def __init__(self, base: Any, shape: BaseShape, reads: ProbeInputs, weights: Any) -> None:
        """`weights` has `weight` [scores, features], `bias` [scores], `gate` [1, features] and
        `gate_bias` [1]."""
        self.base, self.shape, self.reads, self.weights = base, shape, reads, weights

    def __call__(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """The score of every prefix, [rows, tokens, scores]."""
        w, real = self.weights, attention_mask[..., None].float()
        features = self._features(input_ids, attention_mask)
        scores = nn.functional.linear(features, w["weight"], w["bias"])
        gates = nn.functional.linear(features, w["gate"], w["gate_bias"]).sigmoid() * real
        return (gates * scores).cumsum(1) / gates.cumsum(1).clamp_min(1e-6)

    def _features(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """[rows, tokens, features], without a graph."""
        captured: list[Tensor] = []
        with torch.no_grad(), self._capturing(captured):
            self.base.get_submodule(self.shape.family.decoder)(
                input_ids=input_ids, attention_mask=attention_mask, use_cache=False
            )
            return torch.cat(
                [f * f.square().mean(-1, True).add(1e-6).rsqrt() for f in captured], -1
            )

    @contextmanager
    def _capturing(self, features: list[Tensor]) -> Iterator[None]:
        """Inside, hooks append what they capture to `features`, in float32. Plain torch hooks do,
        since they last for one forward."""

        def after(module: nn.Module, inputs: Any, output: Any) -> None:
            features.append((output[0] if isinstance(output, tuple) else output).float())

        def before(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            features.append(inputs[0].float())

        family, hooks = self.shape.family, []
        for layer in self.base.get_submodule(family.layers).children():
            if self.reads == "states":
                hooks.append(layer.register_forward_hook(after))
            else:
                for end in (family.attention.last_linear, family.ffn.last_linear):
                    hooks.append(layer.get_submodule(end).register_forward_pre_hook(before))
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()


def probe_width(shape: BaseShape, reads: ProbeInputs) -> int:
    """The number of features of a token. Raises OtterError for `branches` in families that hide
    them."""
    family = shape.family
    if reads == "states":
        return shape.layers * shape.hidden
    if "output" in (family.attention.read_at, family.ffn.read_at):
        raise OtterError(
            f"{family.architecture} hands over no inputs of its output products",
            hint="baselines.probe.reads: states",
        )
    return shape.layers * (shape.heads * shape.head_dim + shape.ffn)
