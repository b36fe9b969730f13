"""Linear layers with two inputs, and several of them as one product.

DualInputLinear holds the named weights of `x W^h + u W^z (+ b)`: x comes from the base, u from the
stream. FusedLinear computes several of them at once: without gradients their weights share one
storage, of which the named parameters are views. BatchedLinear does the same over all layers. A
watch on the parameters says when a packed copy is out of date."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn


def watch_parameters(module: nn.Module, tell: Callable[[], None]) -> None:
    """Calls `tell` whenever a parameter of the module, or of one inside it, is put in place or
    taken away."""
    for owner in module.modules():
        known = owner._parameters
        if not isinstance(known, _WatchedParameters):
            owner._parameters = known = _WatchedParameters(known)
        if tell not in known.told:
            known.told.append(tell)


class _WatchedParameters(dict[str, Any]):
    """What a module holds its parameters in."""

    def __init__(self, parameters: dict[str, Any]) -> None:
        super().__init__(parameters)
        self.told: list[Callable[[], None]] = []

    def __reduce__(self) -> Any:
        # Of a copy nobody is told.
        return dict, (dict(self),)


def _notifying(name: str) -> Callable[..., Any]:
    change = getattr(dict, name)

    def changed(self: _WatchedParameters, *given: Any, **named: Any) -> Any:
        for tell in self.told:
            tell()
        return change(self, *given, **named)

    return changed


_CHANGES = (
    "__setitem__",
    "__delitem__",
    "__ior__",
    "update",
    "setdefault",
    "pop",
    "popitem",
    "clear",
)
for _name in _CHANGES:
    setattr(_WatchedParameters, _name, _notifying(_name))


PackedWeights = tuple[Tensor, Tensor | None, Tensor | None]


class BaseProjections(NamedTuple):
    """What the four products of a layer take from the base, [n, outputs]: of q k v, out, gate up
    and down."""

    heads: Tensor | None = None
    out: Tensor | None = None
    units: Tensor | None = None
    down: Tensor | None = None


class DualInputLinear(nn.Module):
    """The weights of `x W^h + u W^z (+ b)`; without inserted units only of the first product."""

    def __init__(self, base: int, inserted: int, out: int, bias: bool) -> None:
        super().__init__()
        self.h = nn.Linear(base, out, bias=False)
        self.z = nn.Linear(inserted, out, bias=False) if inserted else None
        self.bias = nn.Parameter(torch.empty(out)) if bias else None


class FusedLinear:
    """`x W^h + u W^z (+ b)` of several TwoInputs side by side, of x [.., d] and u [n, D].

    Without gradients their weights lie one under the other in one storage, of which the named
    parameters become views: nothing is held twice, and what trains a parameter trains this.
    """

    def __init__(self, *parts: DualInputLinear) -> None:
        self.parts = parts
        self.packed: PackedWeights | None = None  # without gradients, as long as it holds
        self.forgotten: Callable[[], None] | None = None  # called when it does not any more

    def __call__(self, x: Tensor, u: Tensor | None, made: Tensor | None = None) -> Tensor:
        """[n, outputs of all parts]. `made`: the output of `BatchedLinear` for x; overwritten."""
        if made is not None:
            return self._plus(made, u)
        of_x, of_u, bias = self.weights()
        x = flatten_tokens(x, of_x.dtype)
        out = torch.mm(x, of_x) if bias is None else torch.addmm(bias, x, of_x)
        return out if of_u is None or u is None else out.addmm_(u, of_u)

    def add(self, z: Tensor, x: Tensor, u: Tensor | None, made: Tensor | None = None) -> Tensor:
        """`z + x W^h + u W^z (+ b)`, [n, outputs], where each product lands in the sum."""
        if made is not None:
            return self._plus(made, u).add_(z)
        of_x, of_u, bias = self.weights()
        out = torch.addmm(z, flatten_tokens(x, of_x.dtype), of_x)
        if of_u is not None and u is not None:
            out = out.addmm_(u, of_u)
        return out if bias is None else out + bias

    def _plus(self, made: Tensor, u: Tensor | None) -> Tensor:
        assert self.packed is not None
        of_u = self.packed[1]
        return made if of_u is None or u is None else made.addmm_(u, of_u)

    def weights(self) -> PackedWeights:
        """W^h [d, outputs], W^z [D, outputs] and b [outputs], of all parts."""
        if torch.is_grad_enabled():
            return _transposed(*map(_stacked, self._parameters()))
        if self.packed is None:
            with torch.inference_mode(False), torch.no_grad():
                self.packed = _transposed(*self._pack(None))
        return self.packed

    def pack_into(self, place: Tensor) -> PackedWeights:
        """The packed weights, with those of h in `place`, [outputs, d]."""
        self.packed = packed = _transposed(*self._pack(place))
        return packed

    def forget(self) -> None:
        """Some parameters have storages of their own from now on, or are others."""
        self.packed = None
        if self.forgotten is not None:
            self.forgotten()

    def _parameters(self) -> list[list[Tensor]]:
        return [
            [part.h.weight for part in self.parts],
            [part.z.weight for part in self.parts if part.z is not None],
            [part.bias for part in self.parts if part.bias is not None],
        ]

    def _pack(self, place: Tensor | None) -> list[Tensor | None]:
        of_x, *others = self._parameters()
        if place is not None:
            place.copy_(torch.cat(of_x))
        whole = [place if place is not None else _stacked(of_x), *map(_stacked, others)]
        for parameters, packed in zip(self._parameters(), whole, strict=True):
            if packed is not None and packed is not parameters[0]:
                views = packed.split([len(one) for one in parameters])
                for parameter, view in zip(parameters, views, strict=True):
                    parameter.data = view
        for part in self.parts:  # loading, sharding or the like may put other parameters in place
            watch_parameters(part, self.forget)
        return whole

    def __getstate__(self) -> dict[str, tuple[DualInputLinear, ...]]:
        # The parameters of a copy are views of nothing: it packs its own.
        return {"parts": self.parts}

    def __setstate__(self, state: dict[str, tuple[DualInputLinear, ...]]) -> None:
        FusedLinear.__init__(self, *state["parts"])


def _stacked(parameters: list[Tensor]) -> Tensor | None:
    if len(parameters) > 1:
        return torch.cat(parameters)
    return parameters[0] if parameters else None


def _transposed(h: Tensor | None, z: Tensor | None, bias: Tensor | None) -> PackedWeights:
    assert h is not None
    return h.t(), None if z is None else z.t(), bias


def flatten_tokens(tensor: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """[batch * tokens, ...]; some modelling files flatten what they hand on themselves."""
    flat = tensor if tensor.ndim == 2 else tensor.reshape(-1, tensor.shape[-1])
    return flat if dtype is None or flat.dtype == dtype else flat.to(dtype)


class BatchedLinear:
    """One product of every layer. W^h of all lies in one storage [layers, outputs, d], of which the
    layers' packed weights are views, and the named parameters of these."""

    def __init__(self, joints: Sequence[FusedLinear]) -> None:
        self.joints = joints
        self._packed: list[PackedWeights] = []
        self._of_x: Tensor | None = None

    def __call__(self, inputs: Sequence[Tensor | None]) -> Sequence[Tensor | None]:
        """[n, outputs] of every layer; inputs [.., d]."""
        if not self.joints:
            return [None] * len(inputs)
        given = [one for one in inputs if one is not None]
        if len({one.ndim for one in given}) > 1:  # sparse layers among dense ones, say
            given = [flatten_tokens(one) for one in given]
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

    def __getstate__(self) -> dict[str, Sequence[FusedLinear]]:
        # A copy's joints pack their own.
        return {"joints": self.joints}

    def __setstate__(self, state: dict[str, Sequence[FusedLinear]]) -> None:
        BatchedLinear.__init__(self, **state)
