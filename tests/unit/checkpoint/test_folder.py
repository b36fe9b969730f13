"""Sound folders: their files, and the places of their tensors."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from otter_cli.checkpoint.folder import Checkpoint
from otter_cli.checkpoint.safetensors_reader import ShardedTensors
from otter_cli.core.errors import OtterError
from tests.unit.checkpoint.crafted import craft, entry, floats, sharded, single

ONE, TWO = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"


def test_a_folder_of_one_file(tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(single(tmp_path / "base", "a", "b"))
    assert checkpoint.config == {"model_type": "llama"}
    assert checkpoint.files == ["config.json", "model.safetensors"]
    assert checkpoint.file_of == {"a": "model.safetensors", "b": "model.safetensors"}
    assert checkpoint.tensors["b"].shape == (2,)


def test_a_sharded_folder(tmp_path: Path) -> None:
    placed = {"a": TWO, "b": ONE, "c": TWO}
    checkpoint = Checkpoint.open(str(sharded(tmp_path / "base", placed)))
    assert checkpoint.file_of == placed
    assert checkpoint.weight_files == [ONE, TWO]
    assert checkpoint.files == ["config.json", ONE, TWO, "model.safetensors.index.json"]


def test_one_whole_file_wins_over_an_index(tmp_path: Path) -> None:
    """As in transformers, which looks for model.safetensors first."""
    folder = sharded(tmp_path / "base", {"a": ONE, "b": TWO})
    floats(folder / "model.safetensors", "whole")
    assert list(Checkpoint.open(folder).tensors) == ["whole"]


def test_what_is_ours_is_not_the_base(tmp_path: Path) -> None:
    folder = single(tmp_path / "graft", "a")
    for ours in [
        "otter.json",
        "otter.safetensors",
        "otter.safetensors.index.json",
        "otter-00001-of-00002.safetensors",
        ".otter.json.otter-staging",
        ".otter.json.otter-lock",
        "training/state.safetensors",
        "training/deep/metrics.jsonl",
    ]:
        (folder / ours).parent.mkdir(parents=True, exist_ok=True)
        (folder / ours).touch()
    assert Checkpoint.open(folder).files == ["config.json", "model.safetensors"]


def test_everything_else_is_the_base(tmp_path: Path) -> None:
    folder = single(tmp_path / "base", "a")
    base = [
        ".gitattributes",
        "original/params.json",
        "otterly.txt",
        "pytorch_model.bin",
        "training",
    ]
    base += ["onnx/training/x", "onnx/otter.json", "modeling_custom.py"]
    for file in base:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_text(file)
    expected = sorted([*base, "config.json", "model.safetensors"])
    assert Checkpoint.open(folder).files == expected


def test_bookkeeping_of_downloads_stays_behind(tmp_path: Path) -> None:
    folder = single(tmp_path / "base", "a")
    for file in [".git/objects/pack", ".cache/huggingface/download/x.lock"]:
        (folder / file).parent.mkdir(parents=True)
        (folder / file).touch()
    assert Checkpoint.open(folder).files == ["config.json", "model.safetensors"]


def test_links_within_the_folder_are_fine(tmp_path: Path) -> None:
    folder = single(tmp_path / "base", "a")
    (folder / "model.safetensors").rename(folder / "weights.safetensors")
    (folder / "model.safetensors").symlink_to("weights.safetensors")
    assert list(Checkpoint.open(folder).tensors) == ["a"]


def hub_snapshot(cache: Path) -> Path:
    """A snapshot as huggingface_hub writes it: links to the repository's or the cache's blobs."""
    repository = cache / "models--org--name"
    source = single(cache / "source", "a")
    snapshot = repository / "snapshots" / "0123abc"
    snapshot.mkdir(parents=True)
    (repository / "blobs").mkdir()
    (cache / "blobs" / "ab").mkdir(parents=True)
    (source / "config.json").rename(repository / "blobs" / "c0ffee")
    (source / "model.safetensors").rename(cache / "blobs" / "ab" / "abcdef")
    (repository / "blobs" / "beef").symlink_to("../../blobs/ab/abcdef")
    (snapshot / "config.json").symlink_to("../../blobs/c0ffee")
    (snapshot / "model.safetensors").symlink_to("../../blobs/beef")
    return snapshot


def test_a_snapshot_in_the_hub_cache(tmp_path: Path) -> None:
    snapshot = hub_snapshot(tmp_path / "hub")
    checkpoint = Checkpoint.open(snapshot)
    assert checkpoint.files == ["config.json", "model.safetensors"]
    assert checkpoint.read("a").tolist() == [0, 0]


def test_a_snapshot_reaches_no_other_repository(tmp_path: Path) -> None:
    snapshot = hub_snapshot(tmp_path / "hub")
    other = tmp_path / "hub" / "models--org--private" / "blobs"
    other.mkdir(parents=True)
    (other / "secret").touch()
    (snapshot / "notes").symlink_to(other / "secret")
    with pytest.raises(OtterError, match="leads outside"):
        Checkpoint.open(snapshot)


def test_a_folder_reached_through_a_link(tmp_path: Path) -> None:
    single(tmp_path / "base", "a")
    (tmp_path / "link").symlink_to("base")
    assert Checkpoint.open(tmp_path / "link").read("a").shape == (2,)


def test_dtype_is_that_of_most_parameters(tmp_path: Path) -> None:
    folder = single(tmp_path / "base", "a")
    fields = {
        "norm1": entry("F32", [1], 0, 4),
        "norm2": entry("F32", [1], 4, 8),
        "matrix": entry("BF16", [2, 2], 8, 16),
    }
    craft(folder / "model.safetensors", fields, bytes(16))
    assert Checkpoint.open(folder).dtype == "BF16"


def test_weights_under_another_stem(tmp_path: Path) -> None:
    floats(tmp_path / "otter.safetensors", "otter.main.norm.weight")
    assert list(ShardedTensors.open(tmp_path, "otter").tensors) == ["otter.main.norm.weight"]
    with pytest.raises(OtterError, match=r"has no model\.safetensors"):
        ShardedTensors.open(tmp_path, "model")


def test_real_models_agree_with_the_library(shared: Path) -> None:
    for name in ("stories260K", "babyllama-tok361", "chat-7m"):
        folder = shared / "models" / name
        checkpoint = Checkpoint.open(folder)
        reference = load_file(folder / "model.safetensors")
        assert set(checkpoint.tensors) == set(reference)
        assert checkpoint.files == sorted(path.name for path in folder.iterdir())
        for tensor, values in reference.items():
            assert np.array_equal(checkpoint.read(tensor), values)


def test_opening_imports_neither_torch_nor_transformers(tmp_path: Path) -> None:
    code = (
        "import sys; from otter_cli.checkpoint import folder, link_or_copy as place, "
        "safetensors_writer as writer; "
        "folder.Checkpoint.open(sys.argv[1]).read('a'); "
        "print(*{'torch', 'transformers', 'safetensors', 'rich'} & set(sys.modules))"
    )
    command = [sys.executable, "-c", code, str(single(tmp_path / "base", "a"))]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == ""
