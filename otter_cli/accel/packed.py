"""PackedBackend: the stream by torch's operations, with packed weights.

FusedLinear runs the linears that read the same inputs as one product. Without gradients their
weights lie one below the other in one storage, of which the named parameters become views: nothing
is stored twice, and writing to a parameter writes to the packed weight. BatchedLinear runs one
product of all layers in one operation. A packed weight is used as long as its parameters lie where
they were packed; ParameterAddresses is asked before every use."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from otter_cli.families.shape import BaseShape
from otter_cli.model.activations import LayerInput, flatten_tokens
from otter_cli.model.backend import TorchBackend
from otter_cli.model.forward_context import ForwardContext
from otter_cli.model.stream import DualInputLinear, InsertedBranch, Insertion, LayerProducts

# A trace takes `Tensor.data_ptr` for an inserted value that leaves its tensor. Inside, it does not
# see the call. Addresses are only compared here, or given to native code by a traced operator.
below_trace = torch._C.DisableTorchFunction


class _WatchedParameters(dict[str, Any]):
    """The `_parameters` of an inserted module, which counts when it is written to. Comparing all
    addresses before every use doubled the Python time of a native stream of 30 layers (0.4 ms)."""

    writes = 0  # to any of these dicts

    def __reduce__(self) -> Any:
        return dict, (dict(self),)  # a copy is not watched


def _counting(name: str) -> Callable[..., Any]:
    write = getattr(dict, name)

    def counted(self: _WatchedParameters, *arguments: Any, **kwargs: Any) -> Any:
        _WatchedParameters.writes += 1
        return write(self, *arguments, **kwargs)

    return counted


_WRITES = (
    "__setitem__",
    "__delitem__",
    "__ior__",
    "update",
    "setdefault",
    "pop",
    "popitem",
    "clear",
)
for _name in _WRITES:
    setattr(_WatchedParameters, _name, _counting(_name))


class ParameterAddresses:
    """Where the parameters of some inserted modules lie. Loading, converting and sharding move
    them. Addresses are compared only after a parameter of any insertion was replaced or
    converted."""

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        self._modules = [module for module in modules if module._parameters]
        self._known: list[int] | None = None
        self._compared_at: tuple[int, int] | None = None

    def remember(self) -> None:
        for module in self._modules:
            if not isinstance(module._parameters, _WatchedParameters):
                module._parameters = _WatchedParameters(module._parameters)
        self._known, self._compared_at = self._addresses(), self._changes()

    def unchanged(self) -> bool:
        """Whether all parameters lie where they lay at the last `remember`."""
        changes = self._changes()
        if changes != self._compared_at:
            if self._known != self._addresses():
                return False
            self._compared_at = changes
        return True

    def _addresses(self) -> list[int]:
        with below_trace():
            return [
                parameter.data_ptr()
                for module in self._modules
                for parameter in module._parameters.values()
                if parameter is not None
            ]

    @staticmethod
    def _changes() -> tuple[int, int]:
        return _WatchedParameters.writes, InsertedBranch.conversions


class PackedWeights(NamedTuple):
    """W^h [d, outputs], W^z [D, outputs] and b [outputs], of several linears side by side."""

    h: Tensor
    z: Tensor | None
    bias: Tensor | None


def _base_product(x: Tensor, weight: Tensor, start: Tensor | None) -> Tensor:
    """`start + x W` of x [.., d] of the base and W [d, outputs]; `start` is a bias or a state."""
    if torch.is_grad_enabled() and x.dtype != weight.dtype:
        product: Tensor = _ProductOfOtherDtype.apply(x, weight, start)
        return product
    flat = flatten_tokens(x, weight.dtype)
    return torch.mm(flat, weight) if start is None else torch.addmm(start, flat, weight)


class _ProductOfOtherDtype(torch.autograd.Function):
    """The product with x in the base's dtype, which the graph keeps as it is. Autograd's own would
    keep a copy in the dtype of the weights, twice as large for a base in bfloat16. Values and
    gradients are bit-equal to autograd's. x gets no gradient: the base is frozen."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, start: Tensor | None) -> Tensor:
        ctx.save_for_backward(x)
        ctx.weight_dtype, ctx.start_is_bias = weight.dtype, start is not None and start.ndim == 1
        flat = flatten_tokens(x, weight.dtype)
        return torch.mm(flat, weight) if start is None else torch.addmm(start, flat, weight)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, Tensor | None, Tensor | None]:
        (gradient,) = gradients
        of_weight = of_start = None
        if ctx.needs_input_grad[1]:
            (x,) = ctx.saved_tensors
            # W is a transposed view, and so is its gradient.
            of_weight = gradient.t().mm(flatten_tokens(x, ctx.weight_dtype)).t()
        if ctx.needs_input_grad[2]:
            of_start = gradient.sum(0) if ctx.start_is_bias else gradient
        return None, of_weight, of_start


class FusedLinear:
    """A `model.stream.Product` of several linears as one product for x and one for u."""

    def __init__(self, *linears: DualInputLinear) -> None:
        self.linears = linears
        self.packed: PackedWeights | None = None
        owners = [m for linear in linears for m in linear.modules()]
        self._addresses = ParameterAddresses(owners)

    def __call__(self, x: Tensor, u: Tensor | None) -> Tensor:
        h, z, bias = self.weights()
        out = _base_product(x, h, bias)
        return out if z is None or u is None else out.addmm_(u, z)

    def add_to(self, z: Tensor, x: Tensor, u: Tensor | None) -> Tensor:
        w_h, w_z, bias = self.weights()
        out = _base_product(x, w_h, z)
        if w_z is not None and u is not None:
            out = out.addmm_(u, w_z)
        return out if bias is None else out + bias

    def weights(self) -> PackedWeights:
        """With gradients, the parameters stacked anew; without, the packed weights."""
        if torch.is_grad_enabled():
            return _transposed([_stacked(parameters) for parameters in self._parameters()])
        if self.packed is None or not self._addresses.unchanged():
            with torch.inference_mode(False), torch.no_grad():
                self.pack()
        assert self.packed is not None
        return self.packed

    def pack(self, storage: Tensor | None = None) -> PackedWeights:
        """Packs the weights anew, W^h into `storage` [outputs, d] if given."""
        h, *others = self._parameters()
        if storage is not None:
            storage.copy_(torch.cat(h))
        stacked = [_stacked(h) if storage is None else storage, *map(_stacked, others)]
        for parameters, whole in zip([h, *others], stacked, strict=True):
            if whole is not None and whole is not parameters[0]:
                views = whole.split([len(parameter) for parameter in parameters])
                for parameter, view in zip(parameters, views, strict=True):
                    parameter.data = view
        self.packed = packed = _transposed(stacked)
        self._addresses.remember()
        return packed

    def _parameters(self) -> list[list[Tensor]]:
        return [
            [linear.h.weight for linear in self.linears],
            [linear.z.weight for linear in self.linears if linear.z is not None],
            [linear.bias for linear in self.linears if linear.bias is not None],
        ]


def _stacked(parameters: list[Tensor]) -> Tensor | None:
    if len(parameters) > 1:
        return torch.cat(parameters)
    return parameters[0] if parameters else None


def _transposed(weights: Sequence[Tensor | None]) -> PackedWeights:
    h, z, bias = weights
    assert h is not None
    return PackedWeights(h.t(), None if z is None else z.t(), bias)


class BatchedLinear:
    """One product of every layer. Their packed W^h are views of one storage [layers, outputs, d].
    A CPU spreads a batched product over its threads, and runs one row times one matrix on one."""

    def __init__(self, products: Sequence[FusedLinear]) -> None:
        self.products = products
        self.packed: list[PackedWeights] = []
        self._h: Tensor | None = None  # [layers, d, outputs]
        linears = [linear for product in products for linear in product.linears]
        self._addresses = ParameterAddresses(m for linear in linears for m in linear.modules())

    def __call__(self, inputs: Sequence[Tensor | None]) -> Sequence[Tensor]:
        """`x W^h (+ b)` of every layer, [n, outputs] each, of `inputs` [.., d]."""
        h = self.pack()
        xs = [x for x in inputs if x is not None]
        if len({x.ndim for x in xs}) > 1:  # sparse layers among dense ones flatten theirs
            xs = [flatten_tokens(x) for x in xs]
        x = torch.cat(xs).to(h.dtype).view(len(xs), -1, h.shape[1])
        biases = [weights.bias for weights in self.packed if weights.bias is not None]
        if biases:
            return torch.baddbmm(torch.stack(biases).unsqueeze(1), x, h).unbind()
        return torch.bmm(x, h).unbind()

    def pack(self) -> Tensor:
        """W^h of all layers, [layers, d, outputs]; packs them anew if a parameter has moved."""
        if self._h is None or not self._addresses.unchanged():
            with torch.inference_mode(False), torch.no_grad():
                one = self.products[0].weights().h
                storage = one.new_empty(len(self.products), *one.t().shape)
                pairs = zip(self.products, storage, strict=True)
                self.packed = [product.pack(part) for product, part in pairs]
                self._h = storage.transpose(1, 2)
            self._addresses.remember()
        return self._h


class PreparedProduct:
    """A `model.stream.Product` whose `x W^h (+ b)` BatchedLinear has computed. Overwrites it."""

    def __init__(self, product: FusedLinear, base_part: Tensor, w_z: Tensor | None) -> None:
        self.linears, self.base_part, self.w_z = product.linears, base_part, w_z

    def __call__(self, x: Tensor, u: Tensor | None) -> Tensor:
        return self._plus(u)

    def add_to(self, z: Tensor, x: Tensor, u: Tensor | None) -> Tensor:
        return self._plus(u).add_(z)

    def _plus(self, u: Tensor | None) -> Tensor:
        out = self.base_part
        return out if self.w_z is None or u is None else out.addmm_(u, self.w_z)


class PackedBackend(TorchBackend):
    """The reference with packed weights. Where the streams run after the base, the products that
    read the base run for all layers at once."""

    product_kind = FusedLinear

    def __init__(self, insertion: Insertion, shape: BaseShape, depth: int, number: int) -> None:
        super().__init__(insertion, shape, depth, number)
        self.batched = [
            BatchedLinear([cast(FusedLinear, product) for product in column]) if column[0] else None
            for column in zip(*self.layer_products.values(), strict=True)
        ]

    def products(
        self, layers: Sequence[LayerInput], context: ForwardContext
    ) -> Sequence[LayerProducts]:
        devices = {layer.attention.normed.device for layer in layers}
        # A hook may yet make the layer's parameters ready.
        hooked = any(layer._forward_pre_hooks for layer in self.inserted.values())
        batch = context.run_after_base and len(layers) == len(self.inserted)
        if not batch or len(devices) > 1 or hooked:
            return super().products(layers, context)
        inputs: list[list[Any]] = [
            [layer.attention.normed for layer in layers],
            [layer.attention.base_out for layer in layers],
            [layer.ffn.normed for layer in layers],
            [layer.ffn.base_out for layer in layers],
        ]
        columns = [
            [None] * len(layers)
            if batched is None
            else [
                PreparedProduct(product, base_part, weights.z)
                for product, base_part, weights in zip(
                    batched.products, batched(xs), batched.packed, strict=True
                )
            ]
            for batched, xs in zip(self.batched, inputs, strict=True)
        ]
        return [LayerProducts(*products) for products in zip(*columns, strict=True)]
