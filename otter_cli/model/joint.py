"""Products of the stream that read the same inputs, as one product each: METHOD, 1."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from otter_cli.model.watched import watch

Weights = tuple[Tensor, Tensor | None, Tensor | None]


class OfBase(NamedTuple):
    """What the four products of a layer take from the base, [n, outputs]: of q k v, out, gate up
    and down."""

    heads: Tensor | None = None
    out: Tensor | None = None
    units: Tensor | None = None
    down: Tensor | None = None


class TwoInputs(nn.Module):
    """The weights of `x W^h + u W^z (+ b)`; without inserted units only of the first product."""

    def __init__(self, base: int, inserted: int, out: int, bias: bool) -> None:
        super().__init__()
        self.h = nn.Linear(base, out, bias=False)
        self.z = nn.Linear(inserted, out, bias=False) if inserted else None
        self.bias = nn.Parameter(torch.empty(out)) if bias else None


class Joint:
    """`x W^h + u W^z (+ b)` of several TwoInputs side by side, of x [.., d] and u [n, D].

    Without gradients their weights lie one under the other in one storage, of which the named
    parameters become views: nothing is held twice, and what trains a parameter trains this.
    """

    def __init__(self, *parts: TwoInputs) -> None:
        self.parts = parts
        self.packed: Weights | None = None  # without gradients, as long as it holds
        self.forgotten: Callable[[], None] | None = None  # called when it does not any more

    def __call__(self, x: Tensor, u: Tensor | None, made: Tensor | None = None) -> Tensor:
        """[n, outputs of all parts]. `made`: what `Batched` gave for x, and is written over."""
        if made is not None:
            return self._plus(made, u)
        of_x, of_u, bias = self.weights()
        x = rows(x, of_x.dtype)
        out = torch.mm(x, of_x) if bias is None else torch.addmm(bias, x, of_x)
        return out if of_u is None or u is None else out.addmm_(u, of_u)

    def add(self, z: Tensor, x: Tensor, u: Tensor | None, made: Tensor | None = None) -> Tensor:
        """`z + x W^h + u W^z (+ b)`, [n, outputs], where each product lands in the sum."""
        if made is not None:
            return self._plus(made, u).add_(z)
        of_x, of_u, bias = self.weights()
        out = torch.addmm(z, rows(x, of_x.dtype), of_x)
        if of_u is not None and u is not None:
            out = out.addmm_(u, of_u)
        return out if bias is None else out + bias

    def _plus(self, made: Tensor, u: Tensor | None) -> Tensor:
        assert self.packed is not None
        of_u = self.packed[1]
        return made if of_u is None or u is None else made.addmm_(u, of_u)

    def weights(self) -> Weights:
        """W^h [d, outputs], W^z [D, outputs] and b [outputs], of all parts."""
        if torch.is_grad_enabled():
            return _transposed(*map(_stacked, self._parameters()))
        if self.packed is None:
            with torch.inference_mode(False), torch.no_grad():
                self.packed = _transposed(*self._pack(None))
        return self.packed

    def pack_into(self, place: Tensor) -> Weights:
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
            watch(part, self.forget)
        return whole

    def __getstate__(self) -> dict[str, tuple[TwoInputs, ...]]:
        # The parameters of a copy are views of nothing: it packs its own.
        return {"parts": self.parts}

    def __setstate__(self, state: dict[str, tuple[TwoInputs, ...]]) -> None:
        Joint.__init__(self, *state["parts"])


def _stacked(parameters: list[Tensor]) -> Tensor | None:
    if len(parameters) > 1:
        return torch.cat(parameters)
    return parameters[0] if parameters else None


def _transposed(h: Tensor | None, z: Tensor | None, bias: Tensor | None) -> Weights:
    assert h is not None
    return h.t(), None if z is None else z.t(), bias


def rows(tensor: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """[batch * tokens, ...]; some modelling files flatten what they hand on themselves."""
    flat = tensor if tensor.ndim == 2 else tensor.reshape(-1, tensor.shape[-1])
    return flat if dtype is None or flat.dtype == dtype else flat.to(dtype)
