"""What all layers take from the base at once is what each would take by itself."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from otter_cli.accel.packed import FusedLinear, PackedBackend, PreparedProduct
from otter_cli.families.shape import base_shape
from otter_cli.graft.config import resolve_config
from otter_cli.model.activations import (
    AttentionActivations,
    BranchActivations,
    LayerInput,
    LayerSite,
)
from otter_cli.model.forward_context import ForwardContext
from otter_cli.model.stream import InsertedLayer, Insertion, LayerProducts

SIZES = {"num_hidden_layers": 3, "num_attention_heads": 4, "vocab_size": 97}
LLAMA = {"model_type": "llama", "hidden_size": 32, "intermediate_size": 48, **SIZES}
PHI = {"model_type": "phi", "hidden_size": 32, "intermediate_size": 48, **SIZES}
N = 5
BEHIND: Any = ForwardContext(None, grad=False, run_after_base=True)  # type: ignore[arg-type]


def _random(*form: int, seed: int = 0) -> Tensor:
    return torch.randn(form, generator=torch.Generator().manual_seed(seed))


def _backend(config: dict[str, Any], **sizes: Any) -> PackedBackend:
    shape = base_shape(config)
    insertion = Insertion(resolve_config(shape, **sizes), shape)
    for seed, layer in enumerate(insertion.layers.values()):
        for parameter in layer.parameters():
            parameter.data = _random(*parameter.shape, seed=seed)
    return PackedBackend(insertion, shape, 3, 1)


def _layers(backend: PackedBackend) -> list[InsertedLayer]:
    return list(backend.inserted.values())


def _base_out(i: int) -> Tensor:
    """Sparse layers hand on rows, dense ones texts."""
    part = _random(N, 48, seed=i + 30)
    return part if i % 2 else part.unsqueeze(0)


def _captured(backend: PackedBackend) -> list[LayerInput]:
    return [
        LayerInput(
            LayerSite(i, i == 2, None, 8),
            AttentionActivations(
                _random(1, N, 32, seed=i),
                None,
                _random(1, N, layer.attention.out.h.in_features, seed=i + 10),
            ),
            BranchActivations(_random(1, N, 32, seed=i + 20), None, _base_out(i)),
        )
        for i, layer in enumerate(_layers(backend))
    ]


Parts = list[list[Tensor | None]]


def _together(backend: PackedBackend) -> Parts:
    """What the four products of each layer take from the base, made for all layers at once."""
    found = backend.products(_captured(backend), BEHIND)
    assert _prepared(found)
    return [
        [product.base_part if isinstance(product, PreparedProduct) else None for product in four]
        for four in found
    ]


def _prepared(found: Any) -> bool:
    return all(isinstance(p, PreparedProduct) for four in found for p in four if p is not None)


def _one_by_one(backend: PackedBackend) -> Parts:
    """Each by its own product, of the parameters as they are now."""
    found = []
    for layer, read in zip(_layers(backend), _captured(backend), strict=True):
        attention, ffn = read.attention, read.ffn
        inputs = attention.normed, attention.base_out, ffn.normed, ffn.base_out
        with torch.enable_grad():
            found.append(
                [
                    None if product is None or x is None else product(x, None).detach()
                    for product, x in zip(LayerProducts.of(layer, FusedLinear), inputs, strict=True)
                ]
            )
    return found


@pytest.mark.parametrize("config", [LLAMA, PHI], ids=["llama", "with biases"])
@pytest.mark.parametrize("sizes", [{"heads": 2, "ffn": 8}, {"heads": 0, "ffn": 8}, {"heads": 2}])
@torch.no_grad()
def test_the_products_of_all_layers_are_each_layer_s(
    config: dict[str, Any], sizes: dict[str, int]
) -> None:
    backend = _backend(config, hidden=8, **{"ffn": 0, **sizes})
    torch.testing.assert_close(_together(backend), _one_by_one(backend))


def _load(layer: InsertedLayer, assign: bool) -> None:
    state = {name: tensor + 1 for name, tensor in layer.state_dict().items()}
    layer.load_state_dict(state, assign=assign)


def _by_itself(backend: PackedBackend) -> None:
    backend.layer_products[1].out(_random(1, N, 32), None)


CHANGES: dict[str, Callable[[PackedBackend], Any]] = {
    "other values": lambda backend: _load(_layers(backend)[1], assign=False),
    "other tensors": lambda backend: _load(_layers(backend)[1], assign=True),
    "a conversion there and back": lambda backend: _layers(backend)[1].half().float(),
    "a product by itself": _by_itself,
}


@pytest.mark.parametrize("change", CHANGES)
@torch.no_grad()
def test_what_changes_a_layer_changes_its_part(change: str) -> None:
    backend = _backend(LLAMA, hidden=8, heads=2, ffn=8)
    _together(backend)
    CHANGES[change](backend)
    torch.testing.assert_close(_together(backend), _one_by_one(backend))


@torch.no_grad()
def test_nothing_is_held_twice_and_a_copy_follows_its_own_tensors() -> None:
    backend = _backend(LLAMA, hidden=8, heads=2, ffn=8)
    before = _together(backend)
    storages = {layer.ffn.up.h.weight.untyped_storage().data_ptr() for layer in _layers(backend)}
    assert len(storages) == 1
    other = copy.deepcopy(backend)
    _layers(other)[0].ffn.up.h.weight.fill_(3.0)
    torch.testing.assert_close(_together(backend), before)
    torch.testing.assert_close(_together(other), _one_by_one(other))


@torch.no_grad()
def test_layers_that_are_made_ready_when_called_are_not_read_before() -> None:
    backend = _backend(LLAMA, hidden=8, heads=2, ffn=8)
    assert not _prepared(backend.products(_captured(backend)[:1], BEHIND))
    _layers(backend)[2].register_forward_pre_hook(lambda *_: None)
    assert not _prepared(backend.products(_captured(backend), BEHIND))
