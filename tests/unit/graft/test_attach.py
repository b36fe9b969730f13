"""Attaching an adapter to its base gives the grafted folder. Any other base is refused."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from otter_cli.checkpoint.folder import MANIFEST, Checkpoint
from otter_cli.core.errors import OtterError
from otter_cli.graft.manifest import Manifest
from otter_cli.graft.storage import TENSORS_FILE
from otter_cli.graft.surgery import attach, strip
from otter_cli.serving.layouts import export_adapter
from tests.support.grafts import random_graft


@pytest.fixture
def graft(tiny_llama: Path, tmp_path: Path) -> Path:
    return random_graft(tiny_llama, tmp_path / "graft", hidden=8, heads=2, ffn=16)


@pytest.fixture
def adapter(graft: Path, tmp_path: Path) -> Path:
    export_adapter(graft, tmp_path / "adapter")
    return tmp_path / "adapter"


@pytest.mark.parametrize("mode", ["link", "copy"])
def test_the_grafted_folder_again(
    tiny_llama: Path, graft: Path, adapter: Path, tmp_path: Path, mode: Any
) -> None:
    out = tmp_path / "out"
    attach(adapter, Checkpoint.open(tiny_llama), out, source="org/name", revision="1", mode=mode)
    assert {path.name for path in out.iterdir()} == {path.name for path in graft.iterdir()}
    for path in graft.iterdir():
        if path.name != MANIFEST:
            assert (out / path.name).read_bytes() == path.read_bytes()
    before, after = Manifest.read(graft), Manifest.read(out)
    assert (after.base.source, after.base.revision) == ("org/name", "1")
    assert after.base.files == before.base.files and after.inserted == before.inserted
    assert len(after.provenance) == len(before.provenance) + 1
    # The adapter is the user's own copy: training the new folder must not change it.
    assert not (out / TENSORS_FILE).samefile(adapter / TENSORS_FILE)
    strip(out, tmp_path / "base")


def _refused(adapter: Path, base: Path, out: Path, match: str) -> None:
    with pytest.raises(OtterError, match=match) as caught:
        attach(adapter, Checkpoint.open(base), out, source="x")
    assert caught.value.hint and not out.exists()


def test_another_base(tiny_checkpoint: Any, adapter: Path, tmp_path: Path) -> None:
    _refused(adapter, tiny_checkpoint("llama", seed=1), tmp_path / "out", "digest differs")
    _refused(adapter, tiny_checkpoint("llama", tied=True), tmp_path / "out", "differs")


def test_a_base_with_more_weights(tiny_llama: Path, adapter: Path, tmp_path: Path) -> None:
    base = Path(shutil.copytree(tiny_llama, tmp_path / "base"))
    shutil.copy(base / "model.safetensors", base / "extra.safetensors")
    _refused(adapter, base, tmp_path / "out", "no such file")


def test_a_base_whose_readme_has_changed(tiny_llama: Path, adapter: Path, tmp_path: Path) -> None:
    base = Path(shutil.copytree(tiny_llama, tmp_path / "base"))
    (base / "README.md").write_text("news")
    attach(adapter, Checkpoint.open(base), tmp_path / "out", source="x")
    assert (tmp_path / "out" / "README.md").read_text() == "news"
    assert "README.md" in Manifest.read(tmp_path / "out").base.files


def test_a_damaged_adapter(tiny_llama: Path, adapter: Path, tmp_path: Path) -> None:
    data = bytearray((adapter / TENSORS_FILE).read_bytes())
    data[-1] ^= 1
    (adapter / TENSORS_FILE).write_bytes(data)
    _refused(adapter, tiny_llama, tmp_path / "out", "digest differs")


def test_an_adapter_of_other_sizes(tiny_llama: Path, adapter: Path, tmp_path: Path) -> None:
    manifest = json.loads((adapter / MANIFEST).read_text())
    manifest["insertions"][0]["hidden"] = 16
    (adapter / MANIFEST).write_text(json.dumps(manifest))
    _refused(adapter, tiny_llama, tmp_path / "out", "planned")
