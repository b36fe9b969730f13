"""Folders that other tools made: a merge, a fine-tune, a quantisation. An honest `different`, and
where they part."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from otter_cli.verification.agenda import VerificationRequest
from otter_cli.verification.grid import Grid
from otter_cli.verification.report import Verdict, VerificationReport, decide
from otter_cli.verification.run_verification import verify

GRID = Grid(dtypes=("float32",), attentions=("sdpa",))


def judged(folder: Path, base: Path) -> tuple[VerificationReport, Verdict]:
    found = verify(VerificationRequest(folder, base, GRID))
    return found, decide(found)


def saved(model: Any, base: Path, folder: Path) -> Path:
    model.save_pretrained(folder)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(base / file, folder / file)
    return folder


def test_a_lora_merge_parts_where_the_adapter_sits(tiny_llama: Path, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(tiny_llama)
    config = LoraConfig(r=2, target_modules=["v_proj"], layers_to_transform=[1])
    adapted = get_peft_model(model, config)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.02)
    found, verdict = judged(
        saved(adapted.merge_and_unload(), tiny_llama, tmp_path / "merged"), tiny_llama
    )
    assert verdict.name == "different"
    assert [f.tensor for f in found.static.findings] == ["model.layers.1.self_attn.v_proj.weight"]
    assert found.first_difference is not None
    first = found.first_difference
    assert (first.module, first.layer) == ("model.layers.1.self_attn.v_proj", 1)
    assert found.first_difference.ulp and found.first_difference.logits.changed
    assert found.equal == 0 and found.control == len(found.results)


def test_one_step_of_fine_tuning_parts_at_once(tiny_llama: Path, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_llama)
    optimiser = torch.optim.SGD(model.parameters(), lr=1e-2)
    tokens = torch.arange(3, 97).view(2, 47)
    model(tokens, labels=tokens).loss.backward()
    optimiser.step()
    found, verdict = judged(saved(model, tiny_llama, tmp_path / "tuned"), tiny_llama)
    assert verdict.name == "different" and len(found.static.findings) > 10
    # The embedding row of a token that did not occur is unchanged.
    first = ("model.embed_tokens", "model.layers.0.input_layernorm")
    assert found.first_difference is not None and found.first_difference.module in first


def test_weights_rounded_to_eight_bits_part_at_the_first_of_them(
    tiny_llama: Path, tmp_path: Path
) -> None:
    """Tensors after quantisation and back: equal shapes, other values."""
    shutil.copytree(tiny_llama, tmp_path / "rounded")
    tensors = load_file(tiny_llama / "model.safetensors")
    for name, tensor in tensors.items():
        if name.endswith("_proj.weight"):
            scale = tensor.abs().amax(-1, keepdim=True) / 127
            tensors[name] = (tensor / scale).round() * scale
    save_file(tensors, tmp_path / "rounded" / "model.safetensors", {"format": "pt"})
    found, verdict = judged(tmp_path / "rounded", tiny_llama)
    assert verdict.name == "different"
    assert found.first_difference is not None
    assert found.first_difference.module == "model.layers.0.self_attn.q_proj"


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_cast_is_told_on_disk_and_in_the_logits(
    tiny_llama: Path, tmp_path: Path, dtype: str
) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=dtype)
    found, verdict = judged(saved(model, tiny_llama, tmp_path / "cast"), tiny_llama)
    assert verdict.name == "different" and found.equal < len(found.results)
    assert "F32" in found.static.findings[0].what


def test_saved_again_by_transformers_it_is_the_same(tiny_llama: Path, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_llama)
    found, verdict = judged(saved(model, tiny_llama, tmp_path / "again"), tiny_llama)
    assert verdict.name == "exact on grid", verdict.sentence
    assert found.untraced and found.first_difference is None
