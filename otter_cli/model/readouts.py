"""Readouts of a frozen base: small modules that read its layers and give scores, without a stream.

They are the controls of docs/method.md, "Comparators": `GatedProbe`, `AttentionProbe` and
`RewardChannel`. All read captured activations, and none changes the base."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from otter_cli.core.errors import OtterError
from otter_cli.families.shape import BaseShape

ReadoutInputs = Literal["states", "branches"]
ReadoutShapes = dict[str, tuple[int, ...]]


class Readout(ABC):
    """Reads a frozen base. `reads`: the states h after each layer (`states`), or the inputs of each
    layer's output products (`branches`): attention outputs a and FFN activations m."""

    name: ClassVar[str]
    # Tensors that start at random values of variance 1 / inputs. The others start at zero.
    random_tensors: ClassVar[frozenset[str]] = frozenset()

    def __init__(
        self, base: Any, shape: BaseShape, reads: ReadoutInputs, weights: Mapping[str, Tensor]
    ) -> None:
        self.base, self.shape, self.reads, self.weights = base, shape, reads, weights

    @classmethod
    @abstractmethod
    def shapes(cls, shape: BaseShape, reads: ReadoutInputs, size: int, width: int) -> ReadoutShapes:
        """The tensors by name, for `size` scores. `width` is the readout's own size."""

    @classmethod
    def width_of(cls, shapes: Mapping[str, tuple[int, ...]]) -> int:
        """The width of stored tensors; 0 for a readout without one."""
        return 0

    @abstractmethod
    def scores(self, features: list[Tensor], attention_mask: Tensor) -> Tensor:
        """The score of every prefix [rows, tokens, size], from what was captured."""

    def __call__(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """The score of every prefix, [rows, tokens, size]. The base runs without a graph."""
        captured: list[Tensor] = []
        with torch.no_grad(), self._capturing(captured):
            self.base.get_submodule(self.shape.family.decoder)(
                input_ids=input_ids, attention_mask=attention_mask, use_cache=False
            )
        return self.scores(captured, attention_mask)

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


def feature_count(shape: BaseShape, reads: ReadoutInputs) -> int:
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


class GatedProbe(Readout):
    """In SWIFT's manner: the score of a prefix is the gated mean of its tokens' own,
    `sum g_s r_s / sum g_s` over s <= t, with `r_s = <w, f_s> + b` and
    `g_s = sigmoid(<w_g, f_s> + b_g)`. f_s: the features of all layers, each brought to rms 1.
    """

    name = "gated"

    @classmethod
    def shapes(cls, shape: BaseShape, reads: ReadoutInputs, size: int, width: int) -> ReadoutShapes:
        features = feature_count(shape, reads)
        return {
            "weight": (size, features),
            "bias": (size,),
            "gate": (1, features),
            "gate_bias": (1,),
        }

    def scores(self, features: list[Tensor], attention_mask: Tensor) -> Tensor:
        w, real = self.weights, attention_mask[..., None].float()
        joined = torch.cat([_unit_rms(f) for f in features], -1)
        scores = F.linear(joined, w["weight"], w["bias"])
        gates = F.linear(joined, w["gate"], w["gate_bias"]).sigmoid() * real
        return (gates * scores).cumsum(1) / gates.cumsum(1).clamp_min(1e-6)


class AttentionProbe(Readout):
    """Multi-head attention over layers, then over tokens (the MHA probe of arXiv 2601.13288).

    Head j weighs the layers of each token by `softmax_l <q_j, K_j f_l>` and sums their values
    `V_j f_l`: u_t, of `width` numbers in all heads together. Causal attention over u_1 ... u_t
    gives a_t, and the scores are `W [u_t ; a_t] + b`. f_l: the features of layer l at rms 1.
    """

    name = "attention"
    random_tensors = frozenset({"query", "key", "value", "token_inputs"})
    head_dim = 16

    @classmethod
    def width_of(cls, shapes: Mapping[str, tuple[int, ...]]) -> int:
        return shapes["value"][0] if "value" in shapes else 0

    @classmethod
    def shapes(cls, shape: BaseShape, reads: ReadoutInputs, size: int, width: int) -> ReadoutShapes:
        _check_reads_states("the attention probe", reads)
        heads = width // cls.head_dim
        return {
            "query": (heads, cls.head_dim),
            "key": (width, shape.hidden),
            "value": (width, shape.hidden),
            "layer_bias": (heads, shape.layers),
            "token_inputs": (3 * width, width),
            "weight": (size, 2 * width),
            "bias": (size,),
        }

    def scores(self, features: list[Tensor], attention_mask: Tensor) -> Tensor:
        w = self.weights
        heads, dim = w["query"].shape
        states = [_unit_rms(f) for f in features]
        by_layer = torch.stack(
            [
                (F.linear(f, w["key"]).unflatten(-1, (heads, dim)) * w["query"]).sum(-1)
                for f in states
            ],
            -1,
        )  # [rows, tokens, heads, layers]
        weights = (by_layer / dim**0.5 + w["layer_bias"]).softmax(-1)
        values = (F.linear(f, w["value"]).unflatten(-1, (heads, dim)) for f in states)
        u = sum(weights[..., layer, None] * value for layer, value in enumerate(values))
        assert isinstance(u, Tensor)
        u = u.flatten(-2)
        query, key, value = (
            part.unflatten(-1, (heads, dim)).transpose(1, 2)
            for part in F.linear(u, w["token_inputs"]).chunk(3, -1)
        )
        # Rows are padded on the right, so a causal mask hides padding from every real token.
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        mixed = mixed.transpose(1, 2).flatten(-2)
        return F.linear(torch.cat([u, mixed], -1), w["weight"], w["bias"])


class RewardChannel(Readout):
    """The reward channel of SLA (arXiv 2503.00029): one linear map a layer and no attention,
    `z_l = silu(W_l RMSNorm([h_l ; z_(l-1)])) + z_(l-1)` with z_0 = 0, and scores `W z_L + b`."""

    name = "reward-channel"
    random_tensors = frozenset({"layers"})

    @classmethod
    def width_of(cls, shapes: Mapping[str, tuple[int, ...]]) -> int:
        return shapes["weight"][1] if "weight" in shapes else 0

    @classmethod
    def shapes(cls, shape: BaseShape, reads: ReadoutInputs, size: int, width: int) -> ReadoutShapes:
        _check_reads_states("the reward channel", reads)
        inputs = shape.hidden + width
        return {
            "layers": (shape.layers, width, inputs),
            "norms": (shape.layers, inputs),
            "weight": (size, width),
            "bias": (size,),
        }

    def scores(self, features: list[Tensor], attention_mask: Tensor) -> Tensor:
        w = self.weights
        z = features[0].new_zeros(*features[0].shape[:-1], w["weight"].shape[1])
        for h, matrix, gain in zip(features, w["layers"], w["norms"], strict=True):
            z = F.silu(F.linear(self.normed(h, z) * (1 + gain), matrix)) + z
        return F.linear(z, w["weight"], w["bias"])

    def normed(self, h: Tensor, z: Tensor) -> Tensor:
        return _unit_rms(torch.cat([h, z], -1))


class SeparateNormRewardChannel(RewardChannel):
    """The reward channel with a norm of h and a norm of z. In a base with massive activations the
    common norm makes z vanish beside h; this form is then the stronger control."""

    name = "reward-channel-separate"

    def normed(self, h: Tensor, z: Tensor) -> Tensor:
        return torch.cat([_unit_rms(h), _unit_rms(z)], -1)


READOUTS: Mapping[str, type[Readout]] = {
    kind.name: kind
    for kind in (GatedProbe, AttentionProbe, RewardChannel, SeparateNormRewardChannel)
}


def _check_reads_states(what: str, reads: ReadoutInputs) -> None:
    if reads != "states":
        raise OtterError(
            f"{what} reads the states of layers, and the file says {reads!r}",
            hint="train it again with this version",
        )


def _unit_rms(state: Tensor) -> Tensor:
    return state * state.square().mean(-1, True).add(1e-6).rsqrt()
