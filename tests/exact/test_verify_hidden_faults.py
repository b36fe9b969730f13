"""Planted faults that get at the base by other ways than its hidden state: a router, the KV cache,
masks, buffers, python attributes, memory shared with numpy, states that last from call to call."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from otter_cli.model.forward_context import ACTIVE_CONTEXT, INSIDE_INSERTION
from otter_cli.model.otter import OtterForCausalLM
from otter_cli.verification.agenda import VerificationRequest
from otter_cli.verification.case_runner import open_pair
from otter_cli.verification.compare import CaseResult, compare, poison_cases
from otter_cli.verification.grid import Case
from otter_cli.verification.structure import PathTrace, trace_path
from tests.support.families import CASES as FAMILIES
from tests.support.grafts import random_graft
from tests.support.planted_faults import plant

# The model, the named inputs of layer 1, the stream.
Fault = Callable[[OtterForCausalLM, dict[str, Any], Tensor], None]
CASES = [
    Case("prefill", 9, attention="eager"),
    Case("prefill", 9, batch=3, padding="left", attention="eager"),
    Case("decode", 7, steps=3, attention="eager"),
]


@pytest.fixture(scope="module")
def graft(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hidden") / "graft"
    return random_graft(tiny_llama, folder, hidden=8, heads=2, ffn=16, signals=("reward",))


def inside(fault: Fault) -> Callable[[OtterForCausalLM], None]:
    """`fault` runs after layer 1, as code of the insertion."""

    def plant(model: OtterForCausalLM) -> None:
        def hook(module: nn.Module, inputs: Any, named: dict[str, Any], h: Tensor) -> None:
            record = ACTIVE_CONTEXT.get()
            if record is None:
                return
            token = INSIDE_INSERTION.set(True)
            try:
                fault(model, named, record.streams["main"])
            finally:
                INSIDE_INSERTION.reset(token)

        layer = model.base.get_submodule("model.layers.1")
        layer.register_forward_hook(hook, with_kwargs=True)

    return plant


def judge(
    folder: Path, cases: list[Case], *, shared: bool = True
) -> tuple[list[CaseResult], list[PathTrace]]:
    pair = open_pair(VerificationRequest(folder), dtype="float32", device="cpu", shared=shared)
    assert pair.otter is not None
    found = [result for result in compare(pair, cases) if isinstance(result, CaseResult)]
    paths = [trace_path(pair, pair.otter, case) for case in cases]
    return poison_cases(pair, pair.otter, found, every_value=False), paths


def in_the_cache(model: OtterForCausalLM, named: dict[str, Any], z: Tensor) -> None:
    """The layer has run already, so only the next step shows it."""
    named["past_key_values"].layers[0].keys.mul_(1 + 1e-3 * z.mean())


def in_the_mask(model: OtterForCausalLM, named: dict[str, Any], z: Tensor) -> None:
    if (mask := named["attention_mask"]) is not None:
        mask.add_(z.mean())


def in_a_buffer(model: OtterForCausalLM, named: dict[str, Any], z: Tensor) -> None:
    model.base.get_submodule("model.rotary_emb").inv_freq.mul_(1 + 1e-3 * z.mean().tanh())


def in_a_view_of_a_weight(model: OtterForCausalLM, named: dict[str, Any], z: Tensor) -> None:
    model.base.get_submodule("lm_head").weight.data[3:5].t()[0].add_(1e-3 * z.mean())


@pytest.mark.parametrize("fault", [in_the_cache, in_the_mask, in_a_buffer, in_a_view_of_a_weight])
def test_writing_in_place_is_traced_before_it_shows(
    graft: Path, monkeypatch: pytest.MonkeyPatch, fault: Fault
) -> None:
    plant(monkeypatch, inside(fault))
    _, paths = judge(graft, CASES)
    leaks = [path.leak for path in paths if path.leak]
    assert leaks and {leak.what for leak in leaks} == {"writes to a tensor of the base's"}


def test_a_cache_written_to_shows_in_the_cached_steps_and_in_the_cache(
    graft: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch, inside(in_the_cache))
    results, _ = judge(graft, CASES)
    assert not any(result.equal for result in results)
    # The logits of a prefill are unchanged, but its cache is not.
    assert not results[0].difference.changed and results[2].difference.changed


def test_an_attribute_that_a_value_of_the_stream_sets(
    graft: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fault(model: OtterForCausalLM, named: dict[str, Any], z: Tensor) -> None:
        attention = model.base.get_submodule("model.layers.2.self_attn")
        attention.scaling = 0.25 * (1 + 1e-6 * float(z.mean()))

    plant(monkeypatch, inside(fault))
    results, paths = judge(graft, CASES)
    assert all("a number or a shape" in path.leak.what for path in paths if path.leak)
    assert all(path.leak for path in paths) and not results[0].equal


def test_an_attribute_set_to_a_constant_is_no_way_of_the_base(
    graft: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No inserted value is read, so poison does not show it. The base is changed nevertheless."""

    def fault(model: OtterForCausalLM, named: dict[str, Any], z: Tensor) -> None:
        model.base.get_submodule("model.layers.2.self_attn").scaling = 0.3

    plant(monkeypatch, inside(fault))
    results, paths = judge(graft, CASES, shared=False)
    assert not any(result.equal for result in results) and all(path.leak for path in paths)
    assert "is not the base's own" in paths[0].leak.what
    # On shared modules the change stays, so every later run of the base is changed too.
    assert not judge(graft, CASES)[0][0].equal


def test_memory_shared_with_numpy_is_written_to_without_any_operation(
    graft: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fault(model: OtterForCausalLM, named: dict[str, Any], z: Tensor) -> None:
        # Adds zero here, like a fault that acts on other inputs only.
        weight = model.base.get_submodule("model.layers.0.input_layernorm").weight
        weight.detach().numpy()[0] += 0.0

    plant(monkeypatch, inside(fault))
    results, paths = judge(graft, CASES)
    assert all(result.equal for result in results)
    assert {path.leak.what for path in paths if path.leak} == {
        "opens the memory of a tensor of the base's"
    }


def test_a_state_that_only_the_next_call_sees(graft: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first forward equals the base's. The state that it leaves changes the second."""

    def fault(model: OtterForCausalLM, named: dict[str, Any], z: Tensor) -> None:
        weight = model.base.get_submodule("model.layers.0.input_layernorm").weight
        weight.data.copy_(torch.full_like(weight, 1.01))

    plant(monkeypatch, inside(fault))
    results, paths = judge(graft, CASES[:1])
    assert results[0].equal and not all(results[0].poison.values())
    assert paths[0].leak and paths[0].leak.what == "writes to a tensor of the base's"


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe"])
@pytest.mark.parametrize("scale", [1e-9, 1e-1])
def test_a_router_that_reads_the_stream(
    tiny_checkpoint: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    family: str,
    scale: float,
) -> None:
    base = next(c for c in FAMILIES if str(c) == family).write(tiny_checkpoint)
    folder = random_graft(base, tmp_path / "g", hidden=8, heads=2, ffn=16, signals=("reward",))
    router = "model.layers.2.mlp.gate"

    def fault(model: OtterForCausalLM) -> None:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> Any:
            if (record := ACTIVE_CONTEXT.get()) is None:
                return None
            z = record.streams["main"].mean(-1).reshape(-1, 1)
            return (inputs[0] + scale * z, *inputs[1:])

        model.base.get_submodule(router).register_forward_pre_hook(hook)

    plant(monkeypatch, fault)
    results, paths = judge(folder, CASES)
    for path in paths:
        assert path.leak and path.leak.module == router
        assert "reads what the insertion made" in path.leak.what
    assert scale < 1e-3 or not any(result.equal for result in results)
    assert not any(all(result.poison.values()) for result in results)
