"""Checkpoints of the hub whose layout differs from that of today's transformers."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from otter_cli.checkpoint.folder import Checkpoint
from otter_cli.core.errors import OtterError
from otter_cli.families.shape import base_parameters, base_shape
from otter_cli.graft.initial_values import initial_value
from otter_cli.model.otter import OtterForCausalLM
from tests.support.families import CASES
from tests.support.grafts import graft_for, plan_for, random_graft

BY_NAME = {case.family: case for case in CASES}
TOKENS = torch.arange(3, 27).view(2, 12)


def _rewritten(base: Path, out: Path, change: Any) -> Path:
    shutil.copytree(base, out)
    save_file(change(load_file(base / "model.safetensors")), out / "model.safetensors")
    return out


def _as_on_the_hub(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """gpt2's file was saved from the decoder alone, with its causal masks in it."""
    masks = {f"h.{i}.attn.bias": torch.ones(1, 1, 128, 128).tril() for i in range(3)}
    return masks | {name.removeprefix("transformer."): t for name, t in tensors.items()}


def test_gpt2_without_the_first_part_of_its_names(tiny_checkpoint: Any, tmp_path: Path) -> None:
    usual = BY_NAME["gpt2"].write(tiny_checkpoint)
    base = _rewritten(usual, tmp_path / "hub", _as_on_the_hub)
    shape = base_shape(Checkpoint.open(base).config)
    assert base_parameters(Checkpoint.open(base), shape) == base_parameters(
        Checkpoint.open(usual), shape
    )
    folder = random_graft(base, tmp_path / "g", hidden=8, heads=2, ffn=16)
    with torch.no_grad():
        expected = AutoModelForCausalLM.from_pretrained(base)(TOKENS).logits
        assert torch.equal(OtterForCausalLM.from_pretrained(folder)(TOKENS).logits, expected)
    one, other = (plan_for(path, hidden=8, heads=2, ffn=16) for path in (usual, base))
    for a, b in zip(one.tensors, other.tensors, strict=True):
        first = initial_value(a, one, Checkpoint.open(usual))
        assert np.array_equal(first, initial_value(b, other, Checkpoint.open(base)))


def test_masks_on_disk_do_not_decide_the_dtype(tiny_checkpoint: Any, tmp_path: Path) -> None:
    """The smallest Pythia models have more elements in masks than in weights."""
    at = "gpt_neox.layers.0.attention"
    buffers = {
        f"{at}.bias": torch.ones(1, 1, 512, 512, dtype=torch.uint8),
        f"{at}.masked_bias": torch.tensor(-1e9),
        f"{at}.rotary_emb.inv_freq": torch.ones(2),
    }
    usual = BY_NAME["gpt_neox"].write(tiny_checkpoint, dtype="bfloat16")
    base = _rewritten(usual, tmp_path / "hub", lambda tensors: tensors | buffers)
    shape = base_shape(Checkpoint.open(base).config)
    assert Checkpoint.open(base).dtype == "BF16"
    assert base_parameters(Checkpoint.open(base), shape) == base_parameters(
        Checkpoint.open(usual), shape
    )
    model = OtterForCausalLM.from_pretrained(graft_for(base, tmp_path / "g", hidden=8))
    assert model.base.dtype == torch.bfloat16


def test_packed_weights_cannot_be_copied_from_but_carry_an_insertion(
    tiny_llama: Path, tmp_path: Path
) -> None:
    name = "model.layers.1.mlp.up_proj.weight"
    base = _rewritten(tiny_llama, tmp_path / "packed", lambda t: t | {name: t[name].to(torch.int8)})
    with pytest.raises(OtterError, match=r"up_proj\.weight is stored as I8") as caught:
        graft_for(base, tmp_path / "copied", hidden=8)
    assert "--init normal" in caught.value.hint and not (tmp_path / "copied").exists()
    graft_for(base, tmp_path / "normal", hidden=8, init="normal")


@pytest.mark.parametrize(
    ("family", "gate"),
    [
        ("mixtral", "block_sparse_moe.experts.0.w1"),
        ("qwen3_moe", "mlp.experts.0.gate_proj"),
        ("llama4_text", "feed_forward.gate_proj"),
        ("deepseek_v3", "mlp.gate_proj"),
        ("qwen3_next", "mlp.shared_expert.gate_proj"),
    ],
)
def test_inserted_units_begin_as_those_of_one_expert_or_the_dense_layer(
    tiny_checkpoint: Any, family: str, gate: str
) -> None:
    base = BY_NAME[family].write(tiny_checkpoint)
    plan = plan_for(base, hidden=8, ffn=16)
    slot = next(s for s in plan.tensors if s.name.endswith("layers.0.ffn.gate.h.weight"))
    first = initial_value(slot, plan, Checkpoint.open(base))
    stored = load_file(base / "model.safetensors")[f"model.layers.0.{gate}.weight"]
    assert np.array_equal(first, stored.numpy()[plan.ffn_units])


def test_gpt_oss_s_packed_experts_leave_the_units_random(tiny_checkpoint: Any) -> None:
    base = BY_NAME["gpt_oss"].write(tiny_checkpoint)
    plan = plan_for(base, hidden=8, heads=2, ffn=16)
    values = {s.name: initial_value(s, plan, Checkpoint.open(base)) for s in plan.tensors}
    gates = [v for name, v in values.items() if name.endswith("ffn.gate.h.weight")]
    assert all(0.01 < gate.std() < 0.03 for gate in gates)
    assert not np.array_equal(gates[0], gates[1])
    sinks = load_file(base / "model.safetensors")["model.layers.0.self_attn.sinks"].numpy()
    assert np.array_equal(values["otter.main.layers.0.attention.sinks"], sinks[plan.head_units])


def test_an_attention_that_no_tap_can_see_is_named(tiny_checkpoint: Any, tmp_path: Path) -> None:
    """In eager mode, GPT-2's upcasting attention does not use a registered function."""
    base = BY_NAME["gpt2"].write(tiny_checkpoint, reorder_and_upcast_attn=True)
    folder = random_graft(base, tmp_path / "g", hidden=8, heads=2, ffn=16)
    eager, sdpa = (
        OtterForCausalLM.from_pretrained(folder, attn_implementation=name)
        for name in ("eager", "sdpa")
    )
    with torch.no_grad():
        assert sdpa(TOKENS).signals["reward"].isfinite().all()
        with pytest.raises(OtterError, match="no registered attention function") as caught:
            eager(TOKENS)
    assert "sdpa" in caught.value.hint
