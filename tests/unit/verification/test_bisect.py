"""Bisection names the operation, module and layer where two models first differ."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from otter_cli.verification.agenda import VerificationRequest
from otter_cli.verification.bisect import bisect, layer_of
from otter_cli.verification.case_runner import ModelPair, open_pair
from otter_cli.verification.grid import Case
from tests.support.grafts import random_graft
from tests.support.planted_faults import add, after_position, leak, plant


def pair_with(base: Path, other: Path, tensor: str, change: float) -> ModelPair:
    shutil.copytree(base, other)
    tensors = load_file(other / "model.safetensors")
    tensors[tensor].view(-1)[3] += change
    save_file(tensors, other / "model.safetensors", {"format": "pt"})
    return open_pair(VerificationRequest(other, base), dtype="float32", device="cpu", shared=False)


@pytest.mark.parametrize(
    ("tensor", "module", "operation", "layer"),
    [
        ("model.layers.1.self_attn.v_proj.weight", "model.layers.1.self_attn.v_proj", "mm", 1),
        ("model.layers.2.input_layernorm.weight", "model.layers.2.input_layernorm", "mul", 2),
        ("lm_head.weight", "lm_head", "mm", None),
    ],
)
def test_a_changed_weight_is_found_where_it_is_used(
    tiny_llama: Path, tmp_path: Path, tensor: str, module: str, operation: str, layer: int | None
) -> None:
    pair = pair_with(tiny_llama, tmp_path / "other", tensor, 0.25)
    found = bisect(pair, Case("decode", 9, steps=2))
    assert found is not None
    assert (found.module, found.layer, found.what) == (module, layer, "gives another result")
    assert found.operation.startswith(f"aten.{operation}")
    assert found.ulp and found.largest and found.logits.changed
    assert found.logits.first == (0, 0)


def test_the_first_position_that_moves_is_the_changed_token_s(
    tiny_llama: Path, tmp_path: Path
) -> None:
    from otter_cli.verification.case_runner import draw_inputs

    case = Case("prefill", 12)
    token = int(draw_inputs(case, 97).tokens[0, 6])
    shutil.copytree(tiny_llama, tmp_path / "other")
    tensors = load_file(tmp_path / "other" / "model.safetensors")
    tensors["model.embed_tokens.weight"][token] += 1
    save_file(tensors, tmp_path / "other" / "model.safetensors", {"format": "pt"})
    pair = open_pair(
        VerificationRequest(tmp_path / "other", tiny_llama),
        dtype="float32",
        device="cpu",
        shared=False,
    )
    found = bisect(pair, case)
    assert found is not None and found.module == "model.embed_tokens"
    row = draw_inputs(case, 97).tokens[0]
    assert found.logits.first == (0, int((row == token).nonzero()[0]))


def test_an_operation_of_a_leak_is_one_that_the_base_does_not_run(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = random_graft(tiny_llama, tmp_path / "graft", hidden=8)
    plant(monkeypatch, leak(add(0.1), after_position(10)))
    pair = open_pair(VerificationRequest(folder), dtype="float32", device="cpu", shared=True)
    assert bisect(pair, Case("prefill", 8)) is None
    found = bisect(pair, Case("prefill", 12))
    assert found is not None
    assert (found.module, found.layer, found.ulp) == ("model.layers.1", 1, None)
    assert "that the base does not run there" in found.what


def test_another_vocabulary_is_told_by_its_form(
    tiny_checkpoint: object, tiny_llama: Path, tmp_path: Path
) -> None:
    other = tiny_checkpoint("llama", vocab_size=101)  # type: ignore[operator]
    pair = open_pair(
        VerificationRequest(other, tiny_llama), dtype="float32", device="cpu", shared=False
    )
    found = bisect(pair, Case("prefill", 4))
    assert found is not None and found.module
    assert found.logits.shapes == ([1, 4, 97], [1, 4, 101])


def test_layers_by_name() -> None:
    assert layer_of("model.layers.11.mlp") == 11
    assert layer_of("transformer.h.3") == 3
    assert layer_of("lm_head") is None and layer_of("") is None


def test_equal_models_do_not_part(tiny_llama: Path) -> None:
    pair = open_pair(
        VerificationRequest(tiny_llama, tiny_llama), dtype="bfloat16", device="cpu", shared=False
    )
    assert bisect(pair, Case("decode", 5, steps=2, dtype="bfloat16")) is None
    assert torch.get_default_dtype() == torch.float32
