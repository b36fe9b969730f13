"""A hostile otter.json or config.json is refused, by name, before anything is built or hashed."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from otter_cli.checkpoint.folder import Checkpoint
from otter_cli.core.errors import OtterError
from otter_cli.graft.grafted_folder import open_graft
from tests.support.grafts import graft_for


@pytest.fixture
def graft(tiny_llama: Path, tmp_path: Path) -> Path:
    base = Path(shutil.copytree(tiny_llama, tmp_path / "base"))
    return graft_for(base, tmp_path / "graft", hidden=8, heads=2, ffn=16)


def replaced(make: Callable[[Path], Any]) -> Callable[[Path], None]:
    def spoil(path: Path) -> None:
        path.unlink()
        make(path)

    return spoil


def sparse(path: Path) -> None:
    path.touch()
    os.truncate(path, 2**40)


def elsewhere(path: Path) -> None:
    other = path.parent.parent / "elsewhere.json"
    other.write_text("{}")
    path.symlink_to(other)


KINDS: dict[str, Callable[[Path], Any]] = {
    "a pipe": replaced(os.mkfifo),
    "a device": replaced(lambda path: path.symlink_to("/dev/zero")),
    "a terabyte": replaced(sparse),
    "a link to elsewhere": replaced(elsewhere),
    "a link to itself": replaced(lambda path: path.symlink_to(path)),
    "a folder": replaced(Path.mkdir),
    "no JSON": lambda path: path.write_text("{"),
    "a list": lambda path: path.write_text("[]"),
    "deep": lambda path: path.write_text("[" * 100_000),
    "a key twice": lambda path: path.write_text(
        path.read_text().replace("{", '{"schema_version": 1, "schema_version": 1,', 1)
    ),
}
SMALL_FILES = ("otter.json", "config.json", "generation_config.json", "tokenizer_config.json")


@pytest.mark.timeout(20)
@pytest.mark.parametrize("file", SMALL_FILES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_small_file_that_is_none(graft: Path, file: str, kind: str) -> None:
    path = graft / file
    if not path.exists():
        path.write_text("{}")
    data = path.read_bytes()
    path.unlink()  # it may be a link to the base's own
    path.write_bytes(data)
    KINDS[kind](path)
    with pytest.raises(OtterError) as refused:
        open_graft(graft)
    assert file in refused.value.what and refused.value.hint


def changed(path: tuple[Any, ...], value: Any) -> Callable[[dict[str, Any]], None]:
    def change(record: dict[str, Any]) -> None:
        inner: Any = record
        for key in path[:-1]:
            inner = inner[key]
        inner[path[-1]] = value

    return change


MAIN = ("insertions", 0)
RECORDS = {
    "negative version": changed(("schema_version",), -1),
    "later version": changed(("schema_version",), 99),
    "a billion heads": changed((*MAIN, "heads"), 10**9),
    "a million heads": changed((*MAIN, "heads"), 10**6),
    "no key/value heads": changed((*MAIN, "kv_heads"), 0),
    "negative width": changed((*MAIN, "hidden"), -8),
    "wide": changed((*MAIN, "hidden"), 10**6),
    "ffn": changed((*MAIN, "ffn"), 10**6),
    "a layer that is not there": changed((*MAIN, "layers"), [0, 10**6]),
    "a layer twice": changed((*MAIN, "layers"), [0, 0]),
    "an unknown kind of signal": changed((*MAIN, "signals", 0, "kind"), "magic"),
    "a name that is none": changed((*MAIN, "signals", 0, "name"), "../x"),
    "a million values": changed((*MAIN, "signals", 0, "size"), 10**6),
    "more values than its tensor": changed((*MAIN, "signals", 0, "size"), 7),
    "a negative size of a file": changed(("base", "files", "config.json", "bytes"), -1),
    "no insertions": changed(("insertions",), []),
}


@pytest.mark.timeout(10)
@pytest.mark.parametrize("name", RECORDS)
def test_sizes_that_no_tensor_has(graft: Path, name: str) -> None:
    record = json.loads((graft / "otter.json").read_text())
    RECORDS[name](record)
    (graft / "otter.json").write_text(json.dumps(record))
    with pytest.raises(OtterError) as refused:
        open_graft(graft)
    assert refused.value.hint
    assert any(part in refused.value.what for part in ("otter.json", "otter.safetensors", "config"))


@pytest.mark.timeout(10)
@pytest.mark.parametrize(
    "key", ["num_hidden_layers", "vocab_size", "hidden_size", "intermediate_size"]
)
@pytest.mark.parametrize("value", [10**9, 10**7])
def test_a_configuration_that_no_tensors_stand_behind(
    tiny_llama: Path, tmp_path: Path, key: str, value: int
) -> None:
    base = Path(shutil.copytree(tiny_llama, tmp_path / "base"))
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**config, key: value}))
    with pytest.raises(OtterError, match=key):
        Checkpoint.open(base)


@pytest.mark.timeout(10)
@pytest.mark.parametrize("name", ["README.md", "notes.txt", "tokenizer.json", "old.bin"])
def test_a_terabyte_beside_the_base_is_refused_and_not_hashed(
    tiny_llama: Path, tmp_path: Path, name: str
) -> None:
    base = Path(shutil.copytree(tiny_llama, tmp_path / "base"))
    (base / name).touch()
    os.truncate(base / name, 2**40)
    with pytest.raises(OtterError, match=name) as refused:
        Checkpoint.open(base)
    assert "move it" in refused.value.hint
