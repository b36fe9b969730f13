"""Inserted tensors in shards: an index records their digests, and updates replace all of them."""

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from otter_cli.checkpoint.folder import Checkpoint
from otter_cli.checkpoint.safetensors_reader import read_header
from otter_cli.core.errors import OtterError
from otter_cli.graft.grafted_folder import update_tensors
from otter_cli.graft.manifest import Manifest
from otter_cli.graft.plan import Plan
from otter_cli.graft.storage import INDEX_FILE, TENSORS_FILE, inserted_files, open_inserted_tensors
from otter_cli.graft.surgery import graft, strip
from tests.support.grafts import plan_for

SHARD_BYTES = 9000


@pytest.fixture
def plan(tiny_llama: Path) -> Plan:
    return plan_for(tiny_llama, signals=("reward",), hidden=8, heads=1, ffn=8, layers=(0, 1))


@pytest.fixture
def sharded(tiny_llama: Path, tmp_path: Path, plan: Plan) -> Path:
    out = tmp_path / "graft"
    graft(Checkpoint.open(tiny_llama), out, plan, max_shard_bytes=SHARD_BYTES)
    return out


def _update(folder: Path, plan: Plan, value: float, limit: int = SHARD_BYTES) -> None:
    values = {slot.name: np.full(slot.shape, value, np.float32) for slot in plan.tensors}
    update_tensors(folder, [plan], Manifest.read(folder), values, max_shard_bytes=limit)


def _value(folder: Path, plan: Plan) -> float:
    """Checks that the folder is consistent. Returns the value that all of its tensors have."""
    Manifest.read(folder).check_tensors(folder)
    weights = open_inserted_tensors(folder, [plan])
    values = {float(x) for name in weights.tensors for x in np.unique(weights.read(name))}
    assert len(values) == 1
    return values.pop()


def _ours(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if "otter" in path.name} - {"otter.json"}


def test_large_insertions_are_sharded(sharded: Path, tiny_llama: Path, plan: Plan) -> None:
    entry, *shards = inserted_files(sharded)
    assert entry == INDEX_FILE and len(shards) > 2 and not (sharded / TENSORS_FILE).exists()
    for shard in shards:
        assert len(read_header(sharded / shard).tensors) == 1 or (
            (sharded / shard).stat().st_size < SHARD_BYTES + 3000
        )
    manifest = Manifest.read(sharded)
    assert manifest.inserted.file == INDEX_FILE
    manifest.check_tensors(sharded)
    assert set(open_inserted_tensors(sharded, [plan]).tensors) == {
        slot.name for slot in plan.tensors
    }


def test_shards_hold_what_one_file_would(
    sharded: Path, tiny_llama: Path, tmp_path: Path, plan: Plan
) -> None:
    graft(Checkpoint.open(tiny_llama), tmp_path / "whole", plan)
    one, many = (
        open_inserted_tensors(tmp_path / "whole", [plan]),
        open_inserted_tensors(sharded, [plan]),
    )
    assert all(one.read_raw(slot.name) == many.read_raw(slot.name) for slot in plan.tensors)


def test_the_base_does_not_see_them(sharded: Path, tiny_llama: Path, tmp_path: Path) -> None:
    assert Checkpoint.open(sharded).files == Checkpoint.open(tiny_llama).files
    strip(sharded, tmp_path / "base")
    names = {path.name for path in (tmp_path / "base").iterdir()}
    assert names == {path.name for path in tiny_llama.iterdir()}


@pytest.mark.parametrize("damage", ["bit", "missing", "swapped", "index", "vouch", "outside"])
def test_a_changed_shard_is_noticed(sharded: Path, damage: str) -> None:
    entry, first, second = inserted_files(sharded)[:3]
    index = json.loads((sharded / entry).read_text())
    if damage == "bit":
        data = bytearray((sharded / first).read_bytes())
        data[-1] ^= 1
        (sharded / first).write_bytes(data)
    elif damage == "missing":
        (sharded / first).unlink()
    elif damage == "swapped":
        (sharded / first).rename(sharded / "kept")
        (sharded / second).rename(sharded / first)
        (sharded / "kept").rename(sharded / second)
    elif damage == "index":
        index["metadata"]["sha256"][first] = index["metadata"]["sha256"][second]
        (sharded / entry).write_text(json.dumps(index))
    elif damage == "vouch":
        del index["metadata"]
        (sharded / entry).write_text(json.dumps(index))
    elif damage == "outside":
        index["weight_map"][next(iter(index["weight_map"]))] = "../x.safetensors"
        (sharded / entry).write_text(json.dumps(index))
    with pytest.raises(OtterError) as caught:
        Manifest.read(sharded).check_tensors(sharded)
    assert caught.value.hint


def test_an_index_that_vouches_for_nothing_is_not_believed(sharded: Path) -> None:
    """It is refused even where otter.json records the digest of the index."""
    from otter_cli.core.digests import sha256_file

    index = json.loads((sharded / INDEX_FILE).read_text())
    del index["metadata"]["sha256"]
    (sharded / INDEX_FILE).write_text(json.dumps(index))
    manifest = Manifest.read(sharded)
    digest = sha256_file(sharded / INDEX_FILE)
    inserted = manifest.inserted.model_copy(update={"sha256": digest})
    manifest = manifest.model_copy(update={"inserted": inserted})
    with pytest.raises(OtterError, match="digest differs"):
        manifest.check_tensors(sharded)


def test_updates_take_turns_and_leave_nothing_behind(sharded: Path, plan: Plan) -> None:
    for value in (1.0, 2.0, 3.0):
        before = set(inserted_files(sharded))
        _update(sharded, plan, value)
        assert _value(sharded, plan) == value
        assert _ours(sharded) == set(inserted_files(sharded))
        assert not before & (set(inserted_files(sharded)) - {INDEX_FILE})


@pytest.mark.parametrize(("first", "then"), [(SHARD_BYTES, 10**9), (10**9, SHARD_BYTES)])
def test_one_file_and_shards_replace_each_other(
    tiny_llama: Path, tmp_path: Path, plan: Plan, first: int, then: int
) -> None:
    out = tmp_path / "graft"
    graft(Checkpoint.open(tiny_llama), out, plan, max_shard_bytes=first)
    _update(out, plan, 1.0, limit=then)
    assert _value(out, plan) == 1.0
    assert _ours(out) == set(inserted_files(out))
    assert (TENSORS_FILE in _ours(out)) == (then > first)
    assert Manifest.read(out).inserted.file == inserted_files(out)[0]


LIMITS = [(SHARD_BYTES, SHARD_BYTES), (10**9, SHARD_BYTES), (SHARD_BYTES, 10**9), (10**9, 10**9)]


@pytest.mark.parametrize("limits", LIMITS)
def test_whole_wherever_an_update_dies(
    tiny_llama: Path, tmp_path: Path, plan: Plan, limits: tuple[int, int]
) -> None:
    """The process dies at each write of otter.json, each rename and each removal, in both
    layouts."""
    out = tmp_path / "graft"
    graft(Checkpoint.open(tiny_llama), out, plan, max_shard_bytes=limits[0])
    _update(out, plan, 0.0, limit=limits[0])
    seen = set()
    for step in range(1000):
        before, value = _value(out, plan), float(step + 1)
        if not _dies(step, lambda new=value: _update(out, plan, new, limit=limits[1])):
            break
        assert _value(out, plan) in (before, value)
        seen.add(_value(out, plan) == value)
        # The next update starts from the same layout and removes unused files.
        _update(out, plan, value, limit=limits[0])
        assert _ours(out) == set(inserted_files(out))
    assert seen == {True, False}
    assert _value(out, plan) == value and step > 5


def _dies(step: int, action: Callable[[], None]) -> bool:
    """Runs `action` in a child process that dies at its `step`-th call that changes the folder."""
    child = os.fork()
    if child:
        _, status = os.waitpid(child, 0)
        assert os.WEXITSTATUS(status) in (0, 9)
        return os.WEXITSTATUS(status) == 9
    try:
        left = iter(range(step, -1, -1))
        for name in ("rename", "replace", "unlink"):
            setattr(Path, name, _deadly(getattr(Path, name), left))
        action()
        os._exit(0)
    finally:
        os._exit(1)


def _deadly(real: Callable[..., Any], left: Iterator[int]) -> Callable[..., Any]:
    def call(*arguments: Any, **named: Any) -> Any:
        if next(left) == 0:
            os._exit(9)
        return real(*arguments, **named)

    return call
