"""Grafting and stripping: the base stays byte-identical, folders are written whole or not at
all."""

import filecmp
import json
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from otter_cli.checkpoint.folder import MANIFEST, Checkpoint
from otter_cli.core.digests import sha256_file
from otter_cli.core.errors import OtterError
from otter_cli.graft.grafted_folder import update_tensors
from otter_cli.graft.manifest import Manifest
from otter_cli.graft.storage import TENSORS_FILE
from otter_cli.graft.surgery import graft, strip
from tests.support.grafts import graft_for, plan_for


def _files(folder: Path) -> list[str]:
    return sorted(
        path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()
    )


@pytest.mark.parametrize("mode", ["link", "copy"])
def test_strip_after_graft_is_the_base(tiny_llama: Path, tmp_path: Path, mode: str) -> None:
    out, again = tmp_path / "out", tmp_path / "again"
    graft(Checkpoint.open(tiny_llama), out, plan_for(tiny_llama), mode=mode)  # type: ignore[arg-type]
    assert set(_files(out)) == {*_files(tiny_llama), MANIFEST, TENSORS_FILE}
    strip(out, again)
    assert _files(again) == _files(tiny_llama)
    same, different, errors = filecmp.cmpfiles(tiny_llama, again, _files(tiny_llama), shallow=False)
    assert sorted(same) == _files(tiny_llama) and not different and not errors


def test_strip_refuses_a_base_that_was_changed(tiny_llama: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    graft(Checkpoint.open(tiny_llama), out, plan_for(tiny_llama), mode="copy")
    with open(out / "tokenizer_config.json", "a") as file:
        file.write(" ")
    with pytest.raises(OtterError, match=r"tokenizer_config\.json is changed"):
        strip(out, tmp_path / "again")
    assert not (tmp_path / "again").exists()


def test_an_existing_target_is_left_alone(tiny_llama: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("x")
    with pytest.raises(OtterError, match="exists"):
        graft_for(tiny_llama, tmp_path / "out")
    assert _files(tmp_path / "out") == ["mine"]


def test_tensors_that_contradict_the_configuration_are_refused(
    tiny_llama: Path, tmp_path: Path
) -> None:
    base = Checkpoint.open(tiny_llama)
    plan = plan_for(tiny_llama)
    del base.tensors["model.layers.1.mlp.up_proj.weight"]
    with pytest.raises(OtterError, match=r"layers\.1\.mlp\.up_proj\.weight is missing"):
        graft(base, tmp_path / "out", plan)
    assert not (tmp_path / "out").exists()


def test_surgery_imports_no_torch(tiny_llama: Path, tmp_path: Path) -> None:
    script = (
        "import sys; from otter_cli.cli.main import main\n"
        f"assert main(['graft', {str(tiny_llama)!r}, {str(tmp_path / 'g')!r}, '--quiet']) == 0\n"
        f"assert main(['inspect', {str(tmp_path / 'g')!r}]) == 0\n"
        f"assert main(['strip', {str(tmp_path / 'g')!r}, {str(tmp_path / 's')!r}]) == 0\n"
        "assert not {'torch', 'transformers'} & set(sys.modules), 'heavy imports'"
    )
    subprocess.run([sys.executable, "-c", script], check=True, stdout=subprocess.DEVNULL)


def test_the_manifest_records_every_file(tiny_llama: Path, tmp_path: Path) -> None:
    out = graft_for(tiny_llama, tmp_path / "out")
    manifest = Manifest.read(out)
    assert sorted(manifest.base.files) == _files(tiny_llama)
    for name, record in manifest.base.files.items():
        assert record.sha256 == sha256_file(tiny_llama / name)
        assert record.bytes == (tiny_llama / name).stat().st_size
    manifest.check_tensors(out)


def test_a_changed_tensor_file_is_noticed(tiny_llama: Path, tmp_path: Path) -> None:
    out = graft_for(tiny_llama, tmp_path / "out")
    data = bytearray((out / TENSORS_FILE).read_bytes())
    data[-1] ^= 1
    (out / TENSORS_FILE).write_bytes(data)
    with pytest.raises(OtterError, match="digest"):
        Manifest.read(out).check_tensors(out)


@pytest.mark.parametrize("text", ["{", "[]", '{"schema_version": 1}', '{"schema_version": 9}'])
def test_a_damaged_manifest_is_named(tiny_llama: Path, tmp_path: Path, text: str) -> None:
    out = graft_for(tiny_llama, tmp_path / "out")
    if "9" in text:
        text = json.dumps({**json.loads((out / MANIFEST).read_text()), "schema_version": 9})
    (out / MANIFEST).write_text(text)
    with pytest.raises(OtterError, match=MANIFEST):
        Manifest.read(out)


@pytest.mark.parametrize("survived", [0, 1, 2])
def test_updated_tensors_are_whole_whenever_the_writer_dies(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, survived: int
) -> None:
    """Dies before, or between, or after the two writes of otter.json."""
    plan = plan_for(tiny_llama)
    values = {slot.name: np.full(slot.shape, 0.5, np.float32) for slot in plan.tensors}
    out = graft_for(tiny_llama, tmp_path / "out")
    writes, write = 0, Manifest.write

    def dying(manifest: Manifest, folder: Path) -> None:
        nonlocal writes
        if writes == survived:
            raise KeyboardInterrupt
        writes += 1
        write(manifest, folder)

    monkeypatch.setattr(Manifest, "write", dying)
    with pytest.raises(KeyboardInterrupt) if survived < 2 else nullcontext():
        update_tensors(out, [plan], Manifest.read(out), values)
    Manifest.read(out).check_tensors(out)
    stored = load_file(out / TENSORS_FILE)["otter.main.embedding.weight"]
    assert bool((stored == 0.5).all()) is (survived > 0)


def test_random_values_depend_on_seed_and_name_alone(tiny_llama: Path, tmp_path: Path) -> None:
    def stored(name: str, **options: object) -> dict[str, np.ndarray]:
        return load_file(
            graft_for(tiny_llama, tmp_path / name, init="normal", **options) / TENSORS_FILE
        )

    first, again, other = stored("a"), stored("b"), stored("c", seed=1)
    key = "otter.main.layers.0.ffn.up.h.weight"
    assert all((first[name] == again[name]).all() for name in first)
    assert not (first[key] == other[key]).all()
    # The same tensor of an insertion with other layers and signals is the same.
    fewer = stored("d", layers=(0,), signals=("reward",))
    assert (first[key] == fewer[key]).all()
