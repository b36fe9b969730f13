"""Weights side by side: one product is all of them, and named tensors stay what counts."""

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor

from otter_cli.accel.packed import FusedLinear, PackedBackend
from otter_cli.families.shape import base_shape
from otter_cli.graft.config import resolve_config
from otter_cli.model.stream import DualInputLinear, InsertedFeedForward, Insertion, PlainProduct

SIZES = {"num_hidden_layers": 1, "num_attention_heads": 4, "vocab_size": 97}
LLAMA = {"model_type": "llama", "hidden_size": 32, "intermediate_size": 48, **SIZES}
X = torch.randn(5, 32, generator=torch.Generator().manual_seed(1))
U = torch.randn(5, 8, generator=torch.Generator().manual_seed(2))


def _filled(bias: bool = True) -> tuple[DualInputLinear, DualInputLinear]:
    generator = torch.Generator().manual_seed(0)
    parts = DualInputLinear(32, 8, 6, bias), DualInputLinear(32, 8, 10, bias)
    with torch.no_grad():
        for part in parts:
            for parameter in part.parameters():
                parameter.normal_(generator=generator)
    return parts


def _expected(parts: tuple[DualInputLinear, ...]) -> Tensor:
    each = []
    for part in parts:
        assert part.z is not None
        out = X @ part.h.weight.T + U @ part.z.weight.T
        each.append(out if part.bias is None else out + part.bias)
    return torch.cat(each, -1)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("grad", [True, False])
def test_one_product_is_all_of_them(bias: bool, grad: bool) -> None:
    parts = _filled(bias)
    with torch.set_grad_enabled(grad):
        torch.testing.assert_close(FusedLinear(*parts)(X, U), _expected(parts))
        torch.testing.assert_close(
            FusedLinear(parts[0]).add_to(X[:, :6], X, U), X[:, :6] + _expected(parts[:1])
        )


def test_without_gradients_the_named_tensors_are_views_of_one_storage() -> None:
    parts = _filled()
    joint = FusedLinear(*parts)
    with torch.no_grad():
        whole, *_ = joint.weights()
    storages = {part.h.weight.untyped_storage().data_ptr() for part in parts}
    assert storages == {whole.untyped_storage().data_ptr()}


def _train(parts: tuple[DualInputLinear, DualInputLinear], joint: FusedLinear) -> None:
    joint(X, U).square().sum().backward()
    torch.optim.SGD([p for part in parts for p in part.parameters()], 0.01).step()


def _load(
    parts: tuple[DualInputLinear, DualInputLinear], joint: FusedLinear, assign: bool = False
) -> None:
    for part in parts:
        state = {name: tensor + 1 for name, tensor in part.state_dict().items()}
        part.load_state_dict(state, assign=assign)


CHANGES: dict[str, Any] = {
    "a training step": _train,
    "other values": _load,
    "other tensors": lambda parts, joint: _load(parts, joint, assign=True),
    "a poison": lambda parts, joint: parts[1].h.weight.detach().fill_(3.0),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_changes_a_named_tensor_changes_the_product(change: str) -> None:
    parts = _filled()
    joint = FusedLinear(*parts)
    with torch.no_grad():
        before = joint(X, U)
    CHANGES[change](parts, joint)
    with torch.no_grad():
        after = joint(X, U)
        assert not torch.allclose(before, after)
        torch.testing.assert_close(after, _expected(parts))


def test_gradients_reach_every_named_tensor_after_packing() -> None:
    parts = _filled()
    joint = FusedLinear(*parts)
    with torch.no_grad():
        joint(X, U)
    named = [p for part in parts for p in part.parameters()]
    got = torch.autograd.grad(joint(X, U).square().sum(), named)
    expected = torch.autograd.grad(_expected(parts).square().sum(), named)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("way", ["deepcopy", "pickle"])
def test_a_copy_follows_its_own_tensors(way: str) -> None:
    shape = base_shape(LLAMA)
    insertion = Insertion(resolve_config(shape, hidden=8, heads=1, ffn=8), shape)
    pair = insertion, PackedBackend(insertion, shape, 1, 1)
    with torch.no_grad():
        for parameter in insertion.parameters():
            parameter.normal_(generator=torch.Generator().manual_seed(0))
        units = pair[1].layer_products[0].units
        assert units is not None
        before = units(X, U)
        other, backend = (
            copy.deepcopy(pair) if way == "deepcopy" else pickle.loads(pickle.dumps(pair))
        )
        ffn = other.layers["0"].ffn
        ffn.up.h.weight.fill_(3.0)
        assert torch.equal(units(X, U), before)
        torch.testing.assert_close(
            backend.layer_products[0].units(X, U), _expected((ffn.gate, ffn.up))
        )


def test_another_dtype_is_followed() -> None:
    shape = base_shape(LLAMA)
    module = InsertedFeedForward(resolve_config(shape, hidden=8, heads=1, ffn=8), shape)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(generator=torch.Generator().manual_seed(0))
        fused = FusedLinear(*module.inputs)
        before = fused(X, U)
        module.double()
        after = fused(X, U.double())
    assert after.dtype == torch.float64
    torch.testing.assert_close(after, before.double(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("bias", [True, False])
def test_it_is_the_plain_product(bias: bool) -> None:
    parts, z = _filled(bias), X[:, :16]
    with torch.no_grad():
        fused, plain = FusedLinear(*parts), PlainProduct(*parts)
        torch.testing.assert_close(fused(X, U), plain(X, U))
        torch.testing.assert_close(fused.add_to(z, X, U), plain.add_to(z, X, U))
        torch.testing.assert_close(fused(X, None), plain(X, None))
