"""Representative layers: the first, the middle, the last, and one of every kind."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from otter_cli.model.forward_context import ACTIVE_CONTEXT
from otter_cli.model.otter import OtterForCausalLM
from otter_cli.verification.agenda import VerificationRequest
from otter_cli.verification.case_runner import ModelPair, open_pair
from otter_cli.verification.grid import Case
from otter_cli.verification.structure import compared_layers, representative_layers, trace_path
from tests.support.families import GEMMA, MIXTURE
from tests.support.grafts import random_graft
from tests.support.planted_faults import plant

CASE = Case("prefill", 9)
SLIDING, FULL = "sliding_attention", "full_attention"


def pair_of(base: Path, out: Path, **form: Any) -> ModelPair:
    form = {"hidden": 8, "heads": 2, "ffn": 16, "signals": ("reward",), **form}
    folder = random_graft(base, out, **form)
    return open_pair(VerificationRequest(folder), dtype="float32", device="cpu", shared=True)


def layers_of(pair: ModelPair) -> tuple[int, ...]:
    assert pair.otter is not None
    return compared_layers(pair.otter)


MIXED = {
    "gemma2": ({**GEMMA, "layer_types": [SLIDING] * 3 + [FULL] + [SLIDING] * 5}, (0, 3, 4, 8)),
    "smollm3": ({"no_rope_layers": [1, 1, 0, 1, 1, 1, 1, 1, 1]}, (0, 2, 4, 8)),
    "qwen3_moe": ({**MIXTURE, "moe_intermediate_size": 24, "mlp_only_layers": [6]}, (0, 4, 6, 8)),
    "llama": ({}, (0, 4, 8)),
}


@pytest.mark.parametrize("family", MIXED)
def test_one_layer_of_every_kind(tiny_checkpoint: Any, tmp_path: Path, family: str) -> None:
    config, expected = MIXED[family]
    base = tiny_checkpoint(family, **{**config, "num_hidden_layers": 9})
    assert layers_of(pair_of(base, tmp_path / "g")) == expected


def test_a_layer_without_the_insertion_is_of_another_kind(
    tiny_checkpoint: Any, tmp_path: Path
) -> None:
    base = tiny_checkpoint("llama", num_hidden_layers=9)
    pair = pair_of(base, tmp_path / "g", layers=(0, 1, 3, 4, 5, 6, 7, 8))
    assert layers_of(pair) == (0, 2, 4, 8)


def test_a_hook_a_setting_or_a_replaced_forward_makes_a_kind_of_its_own() -> None:
    layers = nn.ModuleList(nn.ModuleDict({"norm": nn.LayerNorm(4)}) for _ in range(9))
    assert representative_layers(layers) == (0, 4, 8)
    layers[1]["norm"].eps = 1e-3
    layers[3].register_forward_hook(lambda module, inputs, output: None)
    layers[6]["norm"].forward = lambda x: x
    assert representative_layers(layers) == (0, 1, 3, 4, 6, 8)


def traced(base: Path, out: Path) -> Any:
    pair = pair_of(base, out)
    assert pair.otter is not None
    return trace_path(pair, pair.otter, CASE, layers=compared_layers(pair.otter))


def test_twice_the_layers_leave_as_many_operations_to_compare(
    tiny_checkpoint: Any, tmp_path: Path
) -> None:
    few = traced(tiny_checkpoint("llama", num_hidden_layers=6), tmp_path / "a")
    many = traced(tiny_checkpoint("llama", num_hidden_layers=12), tmp_path / "b")
    assert few.leak is many.leak is None
    assert few.operations == many.operations and many.passed == 3 * few.passed > 0
    assert (few.layers, many.layers, many.depth) == ((0, 3, 5), (0, 6, 11), 12)


def reads_in(index: int) -> Any:
    """A fault in the code of all layers that acts in layer `index` only."""

    def fault(model: OtterForCausalLM) -> None:
        layers = model.capture.layers

        def hook(module: nn.Module, inputs: Any, output: Any) -> Any:
            record = ACTIVE_CONTEXT.get()
            if record is None or module is not layers[index]:
                return None
            return output + 1e-12 * record.streams["main"].mean(-1, keepdim=True)

        for layer in layers:
            layer.register_forward_hook(hook)

    return fault


def writes_in(index: int) -> Any:
    def fault(model: OtterForCausalLM) -> None:
        from otter_cli.model.forward_context import INSIDE_INSERTION

        layers = model.capture.layers

        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            record = ACTIVE_CONTEXT.get()
            if record is None or module is not layers[index]:
                return
            token = INSIDE_INSERTION.set(True)
            output.add_(0.0)
            INSIDE_INSERTION.reset(token)

        for layer in layers:
            layer.register_forward_hook(hook)

    return fault


@pytest.mark.parametrize(
    ("fault", "what"),
    [
        (reads_in(4), "reads what the insertion made"),
        (writes_in(4), "writes to a tensor of the base's"),
    ],
)
def test_a_fault_in_a_layer_that_is_not_compared_is_followed_all_the_same(
    tiny_checkpoint: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: Any, what: str
) -> None:
    plant(monkeypatch, fault)
    pair = pair_of(tiny_checkpoint("llama", num_hidden_layers=6), tmp_path / "g")
    assert pair.otter is not None and layers_of(pair) == (0, 3, 5)
    for case in (CASE, replace(CASE, path="decode", steps=2), replace(CASE, length=80)):
        leak = trace_path(pair, pair.otter, case, layers=(0, 3, 5)).leak
        assert leak is not None and leak.what == what and leak.module == "model.layers.4"


def test_without_a_fault_no_layer_that_is_passed_is_blamed(
    tiny_checkpoint: Any, tmp_path: Path
) -> None:
    """Long and short, cached and not: the stream runs layer by layer, or after the base."""
    pair = pair_of(tiny_checkpoint("llama", num_hidden_layers=6), tmp_path / "g", kv="base")
    assert pair.otter is not None
    for case in (CASE, replace(CASE, path="decode", steps=2), replace(CASE, length=80)):
        assert trace_path(pair, pair.otter, case, layers=(0, 3, 5)).leak is None
