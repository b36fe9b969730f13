"""The folder for vLLM: the base's bytes, every tensor in the index, our configuration."""

import json
from pathlib import Path

import pytest

from otter_cli.checkpoint.folder import Checkpoint
from otter_cli.core.digests import sha256_file
from otter_cli.core.errors import OtterError
from otter_cli.graft.manifest import Manifest
from otter_cli.serving.vllm.client import SignalReader
from otter_cli.serving.vllm.export import export_vllm
from tests.conftest import Otter, TinyCheckpoint
from tests.support.grafts import random_graft


@pytest.mark.parametrize(
    ("family", "options"),
    [("llama", {}), ("mistral", {}), ("qwen2", {"max_shard": "20kB"}), ("qwen3", {})],
)
def test_an_export_holds_base_and_insertion_byte_for_byte(
    family: str, options: dict[str, str], tiny_checkpoint: TinyCheckpoint, tmp_path: Path
) -> None:
    base = tiny_checkpoint(family, **options)
    graft = random_graft(base, tmp_path / "graft", hidden=8)
    done = export_vllm(graft, tmp_path / "served")
    served = tmp_path / "served"
    assert sorted(p.name for p in served.iterdir()) == done.files and done.verdict == "exact"
    for file in done.files:
        if file not in ("config.json", "model.safetensors.index.json"):
            assert sha256_file(served / file) == sha256_file(graft / file)
    # The index sends vLLM to every tensor of both, and nothing else changed in config.json.
    index = json.loads((served / "model.safetensors.index.json").read_text())["weight_map"]
    inserted = {name for name in index if name.startswith("otter.")}
    assert index.keys() - inserted == Checkpoint.open(graft).tensors.keys() and inserted
    was, config = (json.loads((f / "config.json").read_text()) for f in (graft, served))
    assert config.pop("architectures") == [f"Otter{was.pop('architectures')[0]}"]
    described = config.pop("otter")
    assert config == was
    manifest = Manifest.read(graft)
    assert described == {"insertions": [c.model_dump(mode="json") for c in manifest.insertions]}
    reader = SignalReader.from_folder(served)
    assert list(reader.outputs.signals) == [s.name for s in manifest.insertions[0].signals]


def test_a_family_without_a_class_is_refused(
    tiny_checkpoint: TinyCheckpoint, tmp_path: Path
) -> None:
    graft = random_graft(tiny_checkpoint("granite"), tmp_path / "graft")
    with pytest.raises(OtterError, match="no class for granite"):
        export_vllm(graft, tmp_path / "served")
    assert not (tmp_path / "served").exists()


def test_the_verb_says_what_the_engine_will_do(
    tiny_llama: Path, tmp_path: Path, otter_here: Otter
) -> None:
    graft = random_graft(tiny_llama, tmp_path / "graft", hidden=8, kv="base", heads=1)
    done = otter_here("export", graft, tmp_path / "served", "--to", "vllm", "--json")
    data = json.loads(done.stdout)
    assert done.returncode == 0 and data["verdict"] == "exact"
    assert "zero heads a layer" in data["statement"] and "no head size" in data["statement"]
