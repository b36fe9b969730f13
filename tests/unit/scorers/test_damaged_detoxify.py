"""Checkpoints of Detoxify that are damaged: whatever the unpickler raises, the file is named."""

import io
import os
import pickle
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch

from otter_cli.core.errors import OtterError
from otter_cli.scorers.detoxify import load_detoxify

CONTENT: dict[str, Any] = {
    "config": {"dataset": {"args": {"classes": ["toxicity"]}}, "arch": {"args": {"model": "x"}}},
    "state_dict": {"weight": torch.ones(2, 2), "bias": torch.zeros(2)},
}


def _content(*, zipped: bool) -> bytes:
    file = io.BytesIO()
    torch.save(CONTENT, file, _use_new_zipfile_serialization=zipped)
    return file.getvalue()


def _folder(root: Path, content: bytes) -> Path:
    (root / "config.json").write_text("{}")
    (root / "model.ckpt").write_bytes(content)
    return root


def _refused(folder: Path) -> str:
    with pytest.raises(OtterError) as caught:
        load_detoxify(folder, "cpu")
    assert "model.ckpt" in caught.value.what and caught.value.hint
    return caught.value.what


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "pickle"])
def test_bytes_that_changed(tmp_path: Path, zipped: bool) -> None:
    sound, random = _content(zipped=zipped), Random(28)
    for _ in range(300):
        content = bytearray(sound)
        for _ in range(random.choice((1, 1, 8))):
            content[random.randrange(len(content))] = random.randrange(256)
        if random.random() < 0.2:
            del content[random.randrange(len(content)) :]
        _refused(_folder(tmp_path, bytes(content)))


@pytest.mark.parametrize(
    "value", [None, 7, [], {}, {"config": None}, {**CONTENT, "state_dict": [1]}], ids=repr
)
def test_a_pickle_of_something_else(tmp_path: Path, value: Any) -> None:
    for content in (pickle.dumps(value, 2), b""):
        _refused(_folder(tmp_path, content))


@pytest.mark.parametrize("kind", ["pipe", "device", "folder"])
def test_a_checkpoint_that_is_no_file(tmp_path: Path, kind: str) -> None:
    _folder(tmp_path, b"")
    path = tmp_path / "model.ckpt"
    path.unlink()
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        path.mkdir()
    assert "not a regular file" in _refused(tmp_path)
