"""Products of the stream that read the same inputs, as one product each: METHOD, 1."""

from __future__ import annotations

import torch
from torch import Tensor, nn

Weights = tuple[Tensor, Tensor | None, Tensor | None]


class TwoInputs(nn.Module):
    """The weights of `x W^h + u W^z (+ b)`; without inserted units only of the first product."""

    def __init__(self, base: int, inserted: int, out: int, bias: bool) -> None:
        super().__init__()
        self.h = nn.Linear(base, out, bias=False)
        self.z = nn.Linear(inserted, out, bias=False) if inserted else None
        self.bias = nn.Parameter(torch.empty(out)) if bias else None


class Joint:
    """`x W^h + u W^z (+ b)` of several TwoInputs side by side, of rows [n, d] and [n, D].

    Without gradients their weights lie one under the other in one storage, of which the named
    parameters become views: nothing is held twice, and what trains a parameter trains this.
    """

    def __init__(self, *parts: TwoInputs) -> None:
        self.parts = parts
        self._packed: Weights | None = None
        self._known: list[tuple[dict[str, nn.Parameter | None], str, nn.Parameter]] = []

    def __call__(self, x: Tensor, u: Tensor | None) -> Tensor:
        """[n, outputs of all parts]."""
        of_x, of_u, bias = self.weights()
        x = x if x.dtype == of_x.dtype else x.to(of_x.dtype)
        out = torch.mm(x, of_x) if bias is None else torch.addmm(bias, x, of_x)
        return out if of_u is None or u is None else out.addmm_(u, of_u)

    def add(self, z: Tensor, x: Tensor, u: Tensor | None) -> Tensor:
        """`z + x W^h + u W^z (+ b)`, [n, outputs], where each product lands in the sum."""
        of_x, of_u, bias = self.weights()
        x = x if x.dtype == of_x.dtype else x.to(of_x.dtype)
        out = torch.addmm(z, x, of_x)
        if of_u is not None and u is not None:
            out = out.addmm_(u, of_u)
        return out if bias is None else out + bias

    def weights(self) -> Weights:
        """W^h [d, outputs], W^z [D, outputs] and b [outputs], of all parts."""
        if torch.is_grad_enabled():
            return _transposed(*map(_stacked, self._parameters()))
        if self._packed is None or self._replaced():
            with torch.inference_mode(False), torch.no_grad():
                self._packed = _transposed(*self._pack())
        return self._packed

    def _replaced(self) -> bool:
        """Whether loading, sharding or the like put other parameters in place."""
        for owner, name, parameter in self._known:  # noqa: SIM110 - any() takes twice as long
            if owner.get(name) is not parameter:
                return True
        return False

    def forget(self) -> None:
        """The parameters have storages of their own from now on."""
        self._packed = None

    def _parameters(self) -> list[list[Tensor]]:
        return [
            [part.h.weight for part in self.parts],
            [part.z.weight for part in self.parts if part.z is not None],
            [part.bias for part in self.parts if part.bias is not None],
        ]

    def _pack(self) -> list[Tensor | None]:
        whole = [*map(_stacked, self._parameters())]
        for parameters, packed in zip(self._parameters(), whole, strict=True):
            if packed is not None and len(parameters) > 1:
                rows = packed.split([len(one) for one in parameters])
                for parameter, view in zip(parameters, rows, strict=True):
                    parameter.data = view
        self._known = [
            (owner._parameters, name, parameter)
            for part in self.parts
            for owner in part.modules()
            for name, parameter in owner.named_parameters(recurse=False)
        ]
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
