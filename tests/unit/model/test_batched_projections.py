"""What all layers take from the base at once is what each would take by itself."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from otter_cli.families.shape import base_shape
from otter_cli.graft.config import resolve_config
from otter_cli.model.activations import AttentionActivations, BranchActivations
from otter_cli.model.fused_linear import BaseProjections
from otter_cli.model.insertion import BatchedBaseProjections
from otter_cli.model.stream import InsertedLayer

SIZES = {"num_hidden_layers": 3, "num_attention_heads": 4, "vocab_size": 97}
LLAMA = {"model_type": "llama", "hidden_size": 32, "intermediate_size": 48, **SIZES}
PHI = {"model_type": "phi", "hidden_size": 32, "intermediate_size": 48, **SIZES}
N = 5


def _random(*form: int, seed: int = 0) -> Tensor:
    return torch.randn(form, generator=torch.Generator().manual_seed(seed))


def _layers(config: dict[str, Any], **sizes: Any) -> list[InsertedLayer]:
    shape = base_shape(config)
    layers = [InsertedLayer(resolve_config(shape, **sizes), shape) for _ in range(3)]
    for seed, layer in enumerate(layers):
        for parameter in layer.parameters():
            parameter.data = _random(*parameter.shape, seed=seed)
    return layers


def _part(i: int) -> Tensor:
    """Sparse layers hand on rows, dense ones texts."""
    part = _random(N, 48, seed=i + 30)
    return part if i % 2 else part.unsqueeze(0)


def _taps(layers: list[InsertedLayer]) -> list[tuple[AttentionActivations, BranchActivations]]:
    shapes = [layer.attention.out.h.in_features for layer in layers]
    return [
        (
            AttentionActivations(
                _random(1, N, 32, seed=i), None, _random(1, N, width, seed=i + 10)
            ),
            BranchActivations(_random(1, N, 32, seed=i + 20), None, _part(i)),
        )
        for i, width in enumerate(shapes)
    ]


def _one_by_one(layers: list[InsertedLayer]) -> list[BaseProjections]:
    """Each by its own product, of the parameters as they are now."""
    found = []
    for layer, (attention, ffn) in zip(layers, _taps(layers), strict=True):
        inputs = attention.normed, attention.part, ffn.normed, ffn.part
        with torch.enable_grad():
            found.append(
                BaseProjections(
                    *(
                        None if joint is None or x is None else joint(x, None).detach()
                        for joint, x in zip(layer.joints, inputs, strict=True)
                    )
                )
            )
    return found


@pytest.mark.parametrize("config", [LLAMA, PHI], ids=["llama", "with biases"])
@pytest.mark.parametrize("sizes", [{"heads": 2, "ffn": 8}, {"heads": 0, "ffn": 8}, {"heads": 2}])
@torch.no_grad()
def test_the_products_of_all_layers_are_each_layer_s(
    config: dict[str, Any], sizes: dict[str, int]
) -> None:
    layers = _layers(config, hidden=8, **{"ffn": 0, **sizes})
    torch.testing.assert_close(BatchedBaseProjections(layers)(_taps(layers)), _one_by_one(layers))


def _load(layer: InsertedLayer, assign: bool) -> None:
    state = {name: tensor + 1 for name, tensor in layer.state_dict().items()}
    layer.load_state_dict(state, assign=assign)


CHANGES: dict[str, Callable[[InsertedLayer], Any]] = {
    "other values": lambda layer: _load(layer, assign=False),
    "other tensors": lambda layer: _load(layer, assign=True),
    "a conversion there and back": lambda layer: layer.half().float(),
    "a product by itself": lambda layer: layer.attention._out(_random(1, N, 32), None),
}


@pytest.mark.parametrize("change", CHANGES)
@torch.no_grad()
def test_what_changes_a_layer_changes_its_part(change: str) -> None:
    layers = _layers(LLAMA, hidden=8, heads=2, ffn=8)
    layered = BatchedBaseProjections(layers)
    layered(_taps(layers))
    CHANGES[change](layers[1])
    torch.testing.assert_close(layered(_taps(layers)), _one_by_one(layers))


@torch.no_grad()
def test_nothing_is_held_twice_and_a_copy_follows_its_own_tensors() -> None:
    layers = _layers(LLAMA, hidden=8, heads=2, ffn=8)
    layered = BatchedBaseProjections(layers)
    before = layered(_taps(layers))
    storages = {layer.ffn.up.h.weight.untyped_storage().data_ptr() for layer in layers}
    assert len(storages) == 1
    other = copy.deepcopy(layered)
    other.layers[0].ffn.up.h.weight.fill_(3.0)
    torch.testing.assert_close(layered(_taps(layers)), before)
    torch.testing.assert_close(other(_taps(layers)), _one_by_one([*other.layers]))


@torch.no_grad()
def test_layers_that_are_made_ready_when_called_are_not_read_before() -> None:
    layers = _layers(LLAMA, hidden=8, heads=2, ffn=8)
    layers[2].register_forward_pre_hook(lambda *_: None)
    assert BatchedBaseProjections(layers)(_taps(layers)) == [BaseProjections()] * 3
    assert BatchedBaseProjections(layers[:2])(_taps(layers)[:1]) == [BaseProjections()]
