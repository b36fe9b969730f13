"""The base's weights are mapped from its file: no copy of them is in the process's own memory."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from otter_cli.decoding.generate import generate
from otter_cli.decoding.sampling import Sampling
from otter_cli.model.otter import OtterForCausalLM
from tests.conftest import TinyCheckpoint
from tests.support.grafts import random_graft

MAPS = Path("/proc/self/maps")
pytestmark = pytest.mark.skipif(not MAPS.exists(), reason="this system has no /proc/self/maps")


def mapped_ranges(folder: Path) -> list[tuple[int, int]]:
    """Addresses at which weight files of the folder are mapped."""
    ranges = []
    for line in MAPS.read_text().splitlines():
        fields = line.split(maxsplit=5)
        if len(fields) == 6 and Path(fields[5]).parent == folder.resolve():
            start, end = fields[0].split("-")
            ranges.append((int(start, 16), int(end, 16)))
    return ranges


def copied(model: OtterForCausalLM, folder: Path) -> Iterator[str]:
    """Names of the base's parameters that lie outside the mapped files."""
    ranges = mapped_ranges(folder)
    inserted = {id(parameter) for _, parameter in model.inserted_parameters()}
    for name, parameter in model.named_parameters():
        address = parameter.data_ptr()
        if id(parameter) not in inserted and not any(a <= address < b for a, b in ranges):
            yield name


@pytest.mark.parametrize("family", ["llama", "qwen3"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("max_shard", [None, "20kB"])
def test_base_weights_stay_in_their_file(
    tiny_checkpoint: TinyCheckpoint,
    tmp_path: Path,
    family: str,
    dtype: str,
    max_shard: str | None,
) -> None:
    shards = {} if max_shard is None else {"max_shard": max_shard}
    base = tiny_checkpoint(family, dtype=dtype, **shards)
    folder = random_graft(base, tmp_path / "graft", hidden=8, heads=1, ffn=16, signals=("reward",))
    model = OtterForCausalLM.from_pretrained(folder).eval()
    assert not list(copied(model, folder))
    # Decoding may pack inserted weights, and packs none of the base's.
    generate(model, [[5, 6, 7]], Sampling(3), signals=["reward"])
    assert not list(copied(model, folder))


def test_weights_of_another_dtype_are_converted_and_so_copied(
    tiny_llama: Path, tmp_path: Path
) -> None:
    folder = random_graft(tiny_llama, tmp_path / "graft", hidden=8, heads=1, ffn=16)
    model = OtterForCausalLM.from_pretrained(folder, dtype=torch.float64)
    assert list(copied(model, folder))
