"""Adapter and base: each loads again, on its own base alone, byte for byte."""

import shutil
from pathlib import Path

import pytest
import torch

from otter_cli.checkpoint.folder import MANIFEST, Checkpoint
from otter_cli.core.errors import OtterError
from otter_cli.graft.storage import TENSORS_FILE
from otter_cli.graft.surgery import graft
from otter_cli.model.otter import OtterForCausalLM
from otter_cli.serving.layouts import export_adapter, export_base
from tests.support.grafts import plan_for, random_graft

TOKENS = torch.arange(3, 23)[None]


@pytest.fixture
def folder(tiny_llama: Path, tmp_path: Path) -> Path:
    return random_graft(tiny_llama, tmp_path / "graft", hidden=8, heads=2, ffn=16)


def test_an_adapter_says_on_its_base_what_the_graft_says(
    tiny_llama: Path, folder: Path, tmp_path: Path
) -> None:
    done = export_adapter(folder, tmp_path / "adapter")
    assert done.verdict == "exact" and done.files == [TENSORS_FILE, MANIFEST]
    assert {path.name for path in (tmp_path / "adapter").iterdir()} == set(done.files)
    with torch.no_grad():
        one = OtterForCausalLM.from_pretrained(folder)(TOKENS)
        other = OtterForCausalLM.from_pretrained(tmp_path / "adapter", base=tiny_llama)(TOKENS)
    assert torch.equal(one.logits, other.logits)
    assert all(torch.equal(one.signals[name], other.signals[name]) for name in one.signals)


def test_an_adapter_loads_on_no_other_base(
    tiny_checkpoint: object, folder: Path, tmp_path: Path
) -> None:
    export_adapter(folder, tmp_path / "adapter")
    other = tiny_checkpoint("llama", seed=1)  # type: ignore[operator]
    with pytest.raises(OtterError, match="not the base"):
        OtterForCausalLM.from_pretrained(tmp_path / "adapter", base=other)


def test_an_adapter_in_shards(tiny_llama: Path, tmp_path: Path) -> None:
    plan = plan_for(tiny_llama, hidden=8, heads=2, ffn=16)
    graft(Checkpoint.open(tiny_llama), tmp_path / "graft", plan, max_shard_bytes=9000)
    done = export_adapter(tmp_path / "graft", tmp_path / "adapter")
    assert len(done.files) > 3
    with torch.no_grad():
        one = OtterForCausalLM.from_pretrained(tmp_path / "graft")(TOKENS)
        other = OtterForCausalLM.from_pretrained(tmp_path / "adapter", base=tiny_llama)(TOKENS)
    assert torch.equal(one.signals["future"], other.signals["future"])


@pytest.mark.parametrize("mode", ["link", "copy"])
def test_the_base_again(tiny_llama: Path, folder: Path, tmp_path: Path, mode: str) -> None:
    done = export_base(folder, tmp_path / "base", mode=mode)  # type: ignore[arg-type]
    assert done.verdict == "exact"
    assert sorted(done.files) == sorted(path.name for path in tiny_llama.iterdir())
    for file in done.files:
        assert (tmp_path / "base" / file).read_bytes() == (tiny_llama / file).read_bytes()


@pytest.mark.parametrize("export", [export_adapter, export_base])
def test_a_damaged_graft_is_not_exported(folder: Path, tmp_path: Path, export: object) -> None:
    for name in (TENSORS_FILE, "config.json"):
        data = (folder / name).read_bytes()
        (folder / name).unlink()  # a hard link of the base's: not to be written through
        (folder / name).write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(OtterError):
        export(folder, tmp_path / "out")  # type: ignore[operator]
    assert not (tmp_path / "out").exists()


def test_no_graft_no_export(tiny_llama: Path, tmp_path: Path) -> None:
    plain = shutil.copytree(tiny_llama, tmp_path / "plain")
    for export in (export_adapter, export_base):
        with pytest.raises(OtterError, match="not a grafted folder"):
            export(plain, tmp_path / "out")
