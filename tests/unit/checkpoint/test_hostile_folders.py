"""Broken and hostile folders, configurations and indices are refused with a reason."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from otter_cli.checkpoint.folder import Checkpoint
from otter_cli.core.errors import OtterError
from tests.unit.checkpoint.crafted import check_error, craft, floats, sharded, single, write_index

ONE, TWO = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"

Break = Callable[[Path], object]

# Each starts from a sound folder of one file, with one tensor `a`, and breaks it.
SINGLE: dict[str, tuple[Break, str]] = {
    "no config": (lambda p: (p / "config.json").unlink(), "no config.json"),
    "config not JSON": (lambda p: (p / "config.json").write_text("{'a': 1}"), "not JSON"),
    "config empty": (lambda p: (p / "config.json").write_text(""), "not JSON"),
    "config is a list": (lambda p: (p / "config.json").write_text("[1]"), "JSON object"),
    "config not text": (lambda p: (p / "config.json").write_bytes(b"\xff\xfe{"), "not JSON"),
    "config nested": (lambda p: (p / "config.json").write_text("[" * 200_000), "too deeply"),
    "config key twice": (
        lambda p: (p / "config.json").write_text('{"model_type": "a", "model_type": "b"}'),
        "'model_type' occurs twice",
    ),
    "config is huge": (lambda p: os.truncate(p / "config.json", 10**9), "over the limit"),
    "config is a pipe": (lambda p: replace(p / "config.json", os.mkfifo), "not a regular file"),
    "config links outside": (
        lambda p: replace(p / "config.json", lambda f: f.symlink_to("/etc/passwd")),
        "leads outside the folder, to /etc/passwd",
    ),
    "no weights": (lambda p: (p / "model.safetensors").unlink(), "no model.safetensors"),
    "weights pickled": (
        lambda p: (p / "model.safetensors").rename(p / "pytorch_model.bin"),
        r"pickled weights only \(pytorch_model.bin\)",
    ),
    "weights pickled otherwise": (
        lambda p: (p / "model.safetensors").rename(p / "consolidated.00.pth"),
        "pickled weights only",
    ),
    "an adapter": (
        lambda p: (
            (p / "model.safetensors").rename(p / "adapter_model.safetensors"),
            (p / "adapter_config.json").write_text("{}"),
        ),
        "holds an adapter",
    ),
    "shards without index": (
        lambda p: (p / "model.safetensors").rename(p / ONE),
        f"has {ONE}, but neither model.safetensors nor its index",
    ),
    "weights are a folder": (
        lambda p: replace(p / "model.safetensors", lambda f: f.mkdir()),
        "no model.safetensors",
    ),
    "weights truncated": (
        lambda p: os.truncate(p / "model.safetensors", 40),
        r"model.safetensors: the header claims",
    ),
    "weights link nowhere": (
        lambda p: replace(p / "model.safetensors", lambda f: f.symlink_to("nowhere")),
        "'model.safetensors' is a link to a file that does not exist",
    ),
    "weights link to themselves": (
        lambda p: replace(p / "model.safetensors", lambda f: f.symlink_to(f.name)),
        "cannot be followed",
    ),
    "weights link outside": (
        lambda p: (
            (p / "model.safetensors").rename(p.parent / "elsewhere"),
            (p / "model.safetensors").symlink_to("../elsewhere"),
        ),
        "leads outside the folder",
    ),
    "no tensors": (lambda p: craft(p / "model.safetensors", {}), "holds no tensors"),
    "a file that links outside": (
        lambda p: (p / "notes.txt").symlink_to("/etc/passwd"),
        "'notes.txt' leads outside",
    ),
    "a folder that links outside": (
        lambda p: (p / "extra").symlink_to("/etc"),
        "extra is a link to a folder",
    ),
    "a device": (
        lambda p: (p / "zero").symlink_to("/dev/zero"),
        "leads outside the folder, to /dev/zero",
    ),
    "a file name with a newline": (lambda p: (p / "a\nb").touch(), r"'a\\nb' is no file name"),
}


def replace(path: Path, make: Callable[[Path], object]) -> None:
    path.unlink()
    make(path)


@pytest.mark.parametrize("case", SINGLE)
@pytest.mark.timeout(20)
def test_folders_of_one_file(tmp_path: Path, case: str) -> None:
    spoil, what = SINGLE[case]
    folder = single(tmp_path / "base", "a")
    assert Checkpoint.open(folder).weight_files == ["model.safetensors"]
    spoil(folder)
    with pytest.raises(OtterError) as caught:
        Checkpoint.open(folder)
    check_error(caught.value, folder, what)


def placed(shard: str) -> Break:
    """An index that places tensor b in `shard`."""
    return lambda folder: write_index(folder, {"a": ONE, "b": shard})


INDEX = "model.safetensors.index.json"

# Each starts from a sound folder of two shards, `a` in the first and `b` in the second.
SHARDED: dict[str, tuple[Break, str]] = {
    "index not JSON": (lambda p: (p / INDEX).write_text("{"), "not JSON"),
    "index is a list": (lambda p: (p / INDEX).write_text("[]"), "JSON object"),
    "index without a map": (lambda p: (p / INDEX).write_text("{}"), "no weight_map"),
    "map is a list": (lambda p: write_index(p, ["a"]), "no weight_map"),
    "map is empty": (lambda p: write_index(p, {}), "no weight_map"),
    "map names a tensor twice": (
        lambda p: (p / INDEX).write_text(
            json.dumps({"weight_map": {"a": ONE}})[:-2] + ', "a": ""}}'
        ),
        "'a' occurs twice",
    ),
    "shard is a number": (lambda p: write_index(p, {"a": 1}), "no safetensors file"),
    "shard is null": (lambda p: write_index(p, {"a": None}), "no safetensors file"),
    "shard is a pickle": (placed("pytorch_model.bin"), "'pytorch_model.bin'.*no safetensors file"),
    "shard is the config": (placed("config.json"), "no safetensors file"),
    "tensor name with newline": (lambda p: write_index(p, {"a\n": ONE}), "no tensor name"),
    "tensor name empty": (lambda p: write_index(p, {"": ONE}), "no tensor name"),
    "shard missing": (lambda p: (p / TWO).unlink(), f"'{TWO}' is missing"),
    "shard misnamed": (placed("model-3.safetensors"), "'model-3.safetensors' is missing"),
    "shard above": (placed("../x.safetensors"), "'../x.safetensors' leads outside"),
    "shard above and back": (placed(f"../base/{TWO}"), "leads outside"),
    "shard absolute": (placed("/tmp/x.safetensors"), "no file name"),
    "shard dotted": (placed(f"./{TWO}"), "leads outside"),
    "shard with backslash": (placed(".." + "\\" + "x.safetensors"), "no file name"),
    "shard with NUL": (placed("x\0.safetensors"), "no file name"),
    "shard with newline": (placed("x\n.safetensors"), "no file name"),
    "shard name endless": (placed("x" * 10**5 + ".safetensors"), "cannot be followed"),
    "shard links outside": (
        lambda p: (
            (p / TWO).rename(p.parent / "elsewhere"),
            (p / TWO).symlink_to(p.parent / "elsewhere"),
        ),
        "leads outside the folder",
    ),
    "shard links to another shard": (
        lambda p: replace(p / TWO, lambda f: f.symlink_to(ONE)),
        f"tensor 'a' is in {ONE} and in {TWO}",
    ),
    "shard is a pipe": (lambda p: replace(p / TWO, os.mkfifo), "not a regular file"),
    "shard is a folder": (lambda p: replace(p / TWO, lambda f: f.mkdir()), "not a regular file"),
    "shard truncated": (lambda p: os.truncate(p / TWO, 50), TWO),
    "tensor in two shards": (lambda p: floats(p / TWO, "a", "b"), f"'a' is in {ONE} and in {TWO}"),
    "tensor in another shard": (
        lambda p: write_index(p, {"a": TWO, "b": ONE}),
        f"tensor 'a' is not in '{TWO}'",
    ),
    "tensor in no shard": (
        lambda p: write_index(p, {"a": ONE, "b": TWO, "c": TWO}),
        f"tensor 'c' is not in '{TWO}'",
    ),
    "tensor not in the index": (
        lambda p: floats(p / TWO, "b", "c"),
        f"lacks tensor 'c', which is in '{TWO}'",
    ),
}


@pytest.mark.parametrize("case", SHARDED)
@pytest.mark.timeout(20)
def test_sharded_folders(tmp_path: Path, case: str) -> None:
    spoil, what = SHARDED[case]
    folder = sharded(tmp_path / "base", {"a": ONE, "b": TWO})
    assert Checkpoint.open(folder).weight_files == [ONE, TWO]
    spoil(folder)
    with pytest.raises(OtterError) as caught:
        Checkpoint.open(folder)
    check_error(caught.value, folder, what)


def test_a_missing_folder_and_a_file(tmp_path: Path) -> None:
    with pytest.raises(OtterError, match="does not exist") as caught:
        Checkpoint.open(tmp_path / "none")
    check_error(caught.value, tmp_path / "none", "does not exist")
    (tmp_path / "file").touch()
    with pytest.raises(OtterError, match="is not a folder"):
        Checkpoint.open(tmp_path / "file")


def test_pickles_come_with_the_way_to_convert_them(tmp_path: Path) -> None:
    folder = single(tmp_path / "base", "a")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(OtterError) as caught:
        Checkpoint.open(folder)
    assert "save_pretrained" in caught.value.hint


@pytest.mark.parametrize("name", ["otter.safetensors", "otter.json", "training"])
def test_names_that_are_ours_are_refused_in_a_base(tmp_path: Path, name: str) -> None:
    folder = single(tmp_path / "base", "a")
    (folder / name).mkdir()
    with pytest.raises(OtterError, match=r"grafted already|otter uses"):
        Checkpoint.open(folder, allow_otter=False)
    assert Checkpoint.open(folder).files == ["config.json", "model.safetensors"]
