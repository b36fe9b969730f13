"""The static level for foreign folders, such as a fine-tune, a merge or another dtype."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from otter_cli.verification.static import check_foreign_checkpoint

EMBEDDING = "model.embed_tokens.weight"


@pytest.fixture
def copy(tiny_llama: Path, tmp_path: Path) -> Path:
    shutil.copytree(tiny_llama, tmp_path / "other")
    return tmp_path / "other"


def change(folder: Path, file: str, **values: Any) -> None:
    content = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps({**content, **values}, indent=7))


def test_a_copy_is_equal(copy: Path, tiny_llama: Path) -> None:
    found = check_foreign_checkpoint(copy, tiny_llama)
    assert found.holds and not found.notes and found.tensors > 20 and found.files >= 3


def test_saving_again_in_shards_changes_nothing(tiny_llama: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_llama, tmp_path / "saved")
    (tmp_path / "saved" / "model.safetensors").unlink()
    model = AutoModelForCausalLM.from_pretrained(tiny_llama)
    model.save_pretrained(tmp_path / "saved", max_shard_size="20kB")
    change(tmp_path / "saved", "config.json", transformers_version="0.0.1")
    found = check_foreign_checkpoint(tmp_path / "saved", tiny_llama)
    assert found.holds, found.findings


def test_one_changed_embedding_row(copy: Path, tiny_llama: Path) -> None:
    tensors = load_file(copy / "model.safetensors")
    tensors[EMBEDDING][5] += 1e-3
    save_file(tensors, copy / "model.safetensors", {"format": "pt"})
    (finding,) = check_foreign_checkpoint(copy, tiny_llama).findings
    width = tensors[EMBEDDING].shape[1]
    assert finding.tensor == EMBEDDING
    assert finding.what == f"differs from the base's at element {5 * width}"


def test_a_silent_upcast(tiny_checkpoint: Any, tmp_path: Path) -> None:
    base = tiny_checkpoint("llama", dtype="bfloat16")
    shutil.copytree(base, tmp_path / "upcast")
    tensors = load_file(base / "model.safetensors")
    wide = {name: tensor.float() for name, tensor in tensors.items()}
    save_file(wide, tmp_path / "upcast" / "model.safetensors", {"format": "pt"})
    found = check_foreign_checkpoint(tmp_path / "upcast", base)
    assert len(found.findings) == len(tensors)
    assert "is F32 [97, 32], the base's BF16 [97, 32]" in {f.what for f in found.findings}


def test_missing_and_new_tensors(copy: Path, tiny_llama: Path) -> None:
    tensors = load_file(copy / "model.safetensors")
    tensors["extra.weight"] = torch.zeros(1)
    del tensors["lm_head.weight"]
    save_file(tensors, copy / "model.safetensors", {"format": "pt"})
    found = check_foreign_checkpoint(copy, tiny_llama)
    assert [(f.tensor, f.what) for f in found.findings] == [("lm_head.weight", "is missing")]
    assert found.notes == ["1 tensors are new, the first is extra.weight"]


def test_what_steers_generation_refutes_and_the_model_s_own_settings_are_noted(
    copy: Path, tiny_llama: Path
) -> None:
    change(copy, "generation_config.json", repetition_penalty=1.3, transformers_version="9")
    change(copy, "config.json", rms_norm_eps=1e-3)
    (copy / "tokenizer_config.json").unlink()
    found = check_foreign_checkpoint(copy, tiny_llama)
    assert [str(finding) for finding in found.findings] == [
        f"{copy / 'generation_config.json'} has another repetition_penalty than the base's",
        f"{copy / 'tokenizer_config.json'} is missing",
    ]
    assert found.notes == ["config.json: rms_norm_eps is not the base's"]
