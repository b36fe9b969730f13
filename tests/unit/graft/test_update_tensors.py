"""Replacing the inserted tensors leaves a valid folder wherever the process dies."""

from pathlib import Path
from unittest import mock

import numpy as np
import pytest

from otter_cli.core.atomic import write_json
from otter_cli.graft.grafted_folder import update_tensors
from otter_cli.graft.manifest import Manifest, TrainingRecord
from otter_cli.graft.storage import TENSORS_FILE
from tests.support.grafts import graft_for, plan_for

RECORD = TrainingRecord(steps=5, seed=0, objective="bradley-terry", recipe_sha256="0")


class Killed(Exception):
    pass


@pytest.fixture
def folder(tiny_llama: Path, tmp_path: Path) -> Path:
    return graft_for(tiny_llama, tmp_path / "graft", hidden=8, heads=1, ffn=8)


def _update(base: Path, folder: Path, value: float) -> None:
    plan = plan_for(base, hidden=8, heads=1, ffn=8)
    values = {s.name: np.full(s.shape, value, np.float32) for s in plan.tensors}
    manifest = Manifest.read(folder).model_copy(update={"training": {"reward": RECORD}})
    update_tensors(folder, [plan], manifest, values)


def test_twice_dead_before_the_rename(
    tiny_llama: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = (folder / TENSORS_FILE).read_bytes()
    for value in (1.0, 2.0):
        with monkeypatch.context() as patch:
            patch.setattr(Path, "replace", mock.Mock(side_effect=Killed))
            with pytest.raises(Killed):
                _update(tiny_llama, folder, value)
        Manifest.read(folder).check_tensors(folder)
    assert (folder / TENSORS_FILE).read_bytes() == before
    assert not Manifest.read(folder).training


def test_dead_after_the_rename(
    tiny_llama: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = (folder / TENSORS_FILE).read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr("otter_cli.graft.manifest.write_json", _second_write_dies())
        with pytest.raises(Killed):
            _update(tiny_llama, folder, 1.0)
    Manifest.read(folder).check_tensors(folder)
    assert (folder / TENSORS_FILE).read_bytes() != before
    # The tensors may be newer than the record says, but never older.
    assert not Manifest.read(folder).training


def _second_write_dies() -> object:
    calls = iter(range(100))

    def write(path: Path, value: object) -> None:
        if next(calls) == 1:
            raise Killed
        write_json(path, value)

    return write


def test_a_finished_update_accepts_nothing_older(tiny_llama: Path, folder: Path) -> None:
    before = (folder / TENSORS_FILE).read_bytes()
    _update(tiny_llama, folder, 1.0)
    Manifest.read(folder).check_tensors(folder)
    assert Manifest.read(folder).training == {"reward": RECORD}
    (folder / TENSORS_FILE).write_bytes(before)
    with pytest.raises(Exception, match="digest differs"):
        Manifest.read(folder).check_tensors(folder)
