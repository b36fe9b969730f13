"""The static level names each fault on disk by file and tensor, and nothing else."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from otter_cli.core.digests import sha256_file
from otter_cli.core.errors import OtterError
from otter_cli.graft.manifest import Manifest
from otter_cli.graft.storage import TENSORS_FILE
from otter_cli.verification.static import check_graft
from tests.support.grafts import graft_for
from tests.support.planted_faults import flip_bit

EMBEDDING = "model.embed_tokens.weight"


@pytest.fixture
def graft(tiny_llama: Path, tmp_path: Path) -> Path:
    return graft_for(tiny_llama, tmp_path / "graft", hidden=8, signals=("reward",))


def rewrite(path: Path, content: bytes) -> None:
    """Replaces a file without changing the base that it may be a hard link to."""
    path.unlink()
    path.write_bytes(content)


def change_inserted(folder: Path, change: object, *, in_manifest: bool) -> None:
    """Applies `change` to the inserted tensors. `in_manifest`: otter.json records the new
    digest."""
    tensors = load_file(folder / TENSORS_FILE)
    change(tensors)  # type: ignore[operator]
    save_file(tensors, folder / TENSORS_FILE)
    if in_manifest:
        record = json.loads((folder / "otter.json").read_text())
        record["inserted"]["sha256"] = sha256_file(folder / TENSORS_FILE)
        (folder / "otter.json").write_text(json.dumps(record))


def test_an_untouched_graft_holds(graft: Path, tiny_llama: Path) -> None:
    found = check_graft(graft, tiny_llama)
    assert found.holds and not found.notes
    assert found.files == len([path for path in tiny_llama.iterdir() if path.is_file()])
    assert found.tensors == len(load_file(tiny_llama / "model.safetensors"))
    assert found.inserted == len(load_file(graft / TENSORS_FILE))
    assert found.digests["folder"]["config.json"] == sha256_file(tiny_llama / "config.json")
    assert found.digests["folder"][TENSORS_FILE] == sha256_file(graft / TENSORS_FILE)
    assert found.digests["base"].keys() < found.digests["folder"].keys()


def test_without_a_base_the_manifest_is_what_counts(graft: Path) -> None:
    assert check_graft(graft, None).holds
    flip_bit(graft / "model.safetensors", EMBEDDING)
    (finding,) = check_graft(graft, None).findings
    assert finding.file == str(graft / "model.safetensors")


def test_one_bit_of_a_tensor_names_tensor_file_and_element(graft: Path, tiny_llama: Path) -> None:
    flip_bit(graft / "model.safetensors", EMBEDDING)
    file, tensor = check_graft(graft, tiny_llama).findings
    assert file.tensor is None and tensor.tensor == EMBEDDING
    assert file.file == tensor.file == str(graft / "model.safetensors")
    assert tensor.what == "differs from the base's at element 2"
    assert EMBEDDING in str(tensor) and "model.safetensors" in str(tensor)


def test_one_bit_of_the_base_is_found_too(graft: Path, tiny_llama: Path, tmp_path: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(tiny_llama, base)
    flip_bit(base / "model.safetensors", "model.norm.weight")
    findings = check_graft(graft, base).findings
    assert [finding.tensor for finding in findings] == [None, "model.norm.weight"]
    assert findings[0].file == str(base / "model.safetensors")


def test_a_sharded_base_names_the_shard(tiny_checkpoint: object, tmp_path: Path) -> None:
    base = tiny_checkpoint("llama", max_shard="20kB")  # type: ignore[operator]
    graft = graft_for(base, tmp_path / "graft", hidden=8)
    assert check_graft(graft, base).holds
    index = json.loads((base / "model.safetensors.index.json").read_text())
    shard = index["weight_map"]["lm_head.weight"]
    flip_bit(graft / shard, "lm_head.weight")
    findings = check_graft(graft, base).findings
    assert {finding.file for finding in findings} == {str(graft / shard)}
    assert findings[-1].tensor == "lm_head.weight"


def test_a_changed_generation_config(graft: Path, tiny_llama: Path) -> None:
    path = graft / "generation_config.json"
    rewrite(path, json.dumps({**json.loads(path.read_text()), "top_k": 3}).encode())
    (finding,) = check_graft(graft, tiny_llama).findings
    assert finding.file == str(path) and finding.tensor is None


def test_a_missing_file(graft: Path, tiny_llama: Path) -> None:
    (graft / "tokenizer.json").unlink()
    (finding,) = check_graft(graft, tiny_llama).findings
    assert str(finding) == f"{graft / 'tokenizer.json'} is missing"


@pytest.mark.parametrize(
    ("name", "counts"),
    [
        ("adapter_config.json", True),
        ("model-00002.safetensors", True),
        ("modeling_new.py", True),
        ("notes.md", False),
        ("proof.json", False),
        ("training/metrics.jsonl", False),
    ],
)
def test_an_added_file_counts_where_transformers_would_read_it(
    graft: Path, tiny_llama: Path, name: str, counts: bool
) -> None:
    (graft / name).parent.mkdir(exist_ok=True)
    (graft / name).write_text("{}")
    found = check_graft(graft, tiny_llama).findings
    assert [finding.file for finding in found] == ([str(graft / name)] if counts else [])


def test_a_truncated_weight_file_is_a_finding_not_a_crash(graft: Path, tiny_llama: Path) -> None:
    path = graft / "model.safetensors"
    rewrite(path, path.read_bytes()[:-100])
    found = check_graft(graft, tiny_llama)
    assert [finding.file for finding in found.findings] == [str(path)]
    assert any("truncated" in note for note in found.notes)


@pytest.mark.parametrize("in_manifest", [False, True])
def test_an_inserted_tensor_that_is_missing(
    graft: Path, tiny_llama: Path, in_manifest: bool
) -> None:
    name = "otter.main.layers.1.ffn.down.h.weight"
    change_inserted(graft, lambda tensors: tensors.pop(name), in_manifest=in_manifest)
    findings = check_graft(graft, tiny_llama).findings
    assert len(findings) == (1 if in_manifest else 2)
    assert (findings[-1].tensor, findings[-1].what) == (name, "is missing")


def test_inserted_tensors_of_other_shape_dtype_or_name(graft: Path, tiny_llama: Path) -> None:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors["otter.main.norm.weight"] = torch.ones(9)
        tensors["otter.main.signals.reward.bias"] = torch.zeros(1, dtype=torch.bfloat16)
        tensors["otter.main.surplus"] = torch.zeros(1)

    change_inserted(graft, change, in_manifest=True)
    found = {f.tensor: f.what for f in check_graft(graft, tiny_llama).findings}
    assert found == {
        "otter.main.norm.weight": "is F32 [9], planned F32 [8]",
        "otter.main.signals.reward.bias": "is BF16 [1], planned F32 [1]",
        "otter.main.surplus": "is unexpected",
    }


def test_changed_inserted_values_do_not_reproduce_the_digest(graft: Path) -> None:
    change_inserted(
        graft, lambda tensors: tensors["otter.main.norm.weight"].add_(1), in_manifest=False
    )
    (finding,) = check_graft(graft, None).findings
    assert finding.file == str(graft / TENSORS_FILE) and "records" in finding.what


def test_tensors_half_way_through_an_update_hold(graft: Path) -> None:
    manifest = Manifest.read(graft)
    inserted = manifest.inserted.model_copy(
        update={"sha256": "0" * 64, "previous_sha256": manifest.inserted.sha256}
    )
    manifest.model_copy(update={"inserted": inserted}).write(graft)
    assert check_graft(graft, None).holds


def test_an_adapter_is_checked_with_its_base_and_not_without(
    graft: Path, tiny_llama: Path, tmp_path: Path
) -> None:
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    for name in ("otter.json", TENSORS_FILE):
        shutil.copy(graft / name, adapter / name)
    assert check_graft(adapter, tiny_llama).holds
    with pytest.raises(OtterError, match="adapter alone"):
        check_graft(adapter, None)


def test_no_torch_is_imported() -> None:
    code = (
        "import sys; from otter_cli.verification import proof, run_verification, static;"
        "sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
