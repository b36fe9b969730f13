"""GGUF files cut off or spoilt: an OtterError and no folder, or what transformers reads too."""

import shutil
from functools import cache
from pathlib import Path
from random import Random
from tempfile import mkdtemp
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from otter_cli.checkpoint.folder import Checkpoint
from otter_cli.checkpoint.gguf.convert import import_gguf
from otter_cli.checkpoint.gguf.header import read_gguf_header
from otter_cli.core.errors import OtterError
from tests.property.mutations import BLIND
from tests.support.gguf_files import write_gguf


@cache
def sound() -> tuple[bytes, int]:
    """A file's bytes, and where its data starts."""
    folder = Path(mkdtemp())
    try:
        path = write_gguf(folder / "tiny.gguf")
        return path.read_bytes(), read_gguf_header(path).data_start
    finally:
        shutil.rmtree(folder)


def flip_in_header(content: bytes, random: Random) -> bytes:
    changed = bytearray(content)
    changed[random.randrange(sound()[1])] = random.choice(
        [0, 1, 2, 127, 255, random.randrange(256)]
    )
    return bytes(changed)


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.integers(0, 2**32))
def test_a_spoilt_file_is_refused_whole_or_read_as_transformers_reads_it(seed: int) -> None:
    random = Random(seed)
    spoil: Any = random.choice([flip_in_header, flip_in_header, *BLIND])
    folder = Path(mkdtemp())
    try:
        (folder / "m.gguf").write_bytes(spoil(sound()[0], random))
        try:
            import_gguf(folder / "m.gguf", folder / "out", dtype="float32")
        except OtterError:
            assert [path.name for path in folder.iterdir()] == ["m.gguf"]
        else:
            same_as_transformers(folder)
    finally:
        shutil.rmtree(folder)


def same_as_transformers(folder: Path) -> None:
    from transformers import AutoModelForCausalLM

    expected = AutoModelForCausalLM.from_pretrained(
        str(folder), gguf_file="m.gguf", dtype=torch.float32
    ).state_dict()
    checkpoint = Checkpoint.open(folder / "out")
    assert checkpoint.tensors.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(torch.from_numpy(checkpoint.read(name).copy()), value), name


@pytest.mark.parametrize("share", [step / 40 for step in range(40)])
def test_a_cut_off_file_is_refused(share: float, tmp_path: Path) -> None:
    content = sound()[0]
    (tmp_path / "m.gguf").write_bytes(content[: int(share * len(content))])
    with pytest.raises(OtterError, match=r"truncated|not a GGUF file"):
        import_gguf(tmp_path / "m.gguf", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["m.gguf"]
