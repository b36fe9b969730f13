"""A base by folder or by hub id, from a hub cache, without a network."""

import hashlib
import shutil
from pathlib import Path

import pytest

from otter_cli.checkpoint.base_source import find_base
from otter_cli.checkpoint.folder import Checkpoint
from otter_cli.core.errors import OtterError
from tests.unit.checkpoint.crafted import single

COMMIT, OLDER = "c0ffee" * 6 + "0123", "beef" * 10


def snapshot(cache: Path, commit: str, *tensors: str) -> Path:
    """models--org--name/snapshots/COMMIT with links to blobs."""
    repository = cache / "models--org--name"
    folder = repository / "snapshots" / commit
    folder.mkdir(parents=True)
    (repository / "blobs").mkdir(exist_ok=True)
    source = single(cache / f"source-{commit}", *tensors)
    for path in source.iterdir():
        blob = hashlib.sha256(path.read_bytes()).hexdigest()
        path.rename(repository / "blobs" / blob)
        (folder / path.name).symlink_to(f"../../blobs/{blob}")
    return folder


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache with two commits: `main` points to one, the tag v1 to the other."""
    from huggingface_hub import constants

    cache = tmp_path / "hub"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    assert constants.HF_HUB_OFFLINE
    snapshot(cache, COMMIT, "a", "b")
    snapshot(cache, OLDER, "a")
    refs = cache / "models--org--name" / "refs"
    refs.mkdir()
    (refs / "main").write_text(COMMIT)
    (refs / "v1").write_text(OLDER)
    return cache


@pytest.mark.parametrize(
    ("text", "commit", "tensors"),
    [
        ("org/name", COMMIT, 2),
        ("org/name@main", COMMIT, 2),
        ("org/name@v1", OLDER, 1),
        (f"org/name@{OLDER}", OLDER, 1),
    ],
)
def test_a_revision_is_resolved_to_its_commit(
    cache: Path, text: str, commit: str, tensors: int
) -> None:
    source = find_base(text)
    assert (source.name, source.revision) == ("org/name", commit)
    assert source.path == cache / "models--org--name" / "snapshots" / commit
    assert len(Checkpoint.open(source.path).tensors) == tensors


@pytest.mark.parametrize("text", ["org/other", "org/name@v9", f"org/name@{'0' * 40}"])
def test_absent_and_offline(cache: Path, text: str) -> None:
    with pytest.raises(OtterError, match=f"{text} is neither a folder") as caught:
        find_base(text)
    assert "HF_HUB_OFFLINE" in caught.value.hint and str(cache) in caught.value.what


def test_a_folder_goes_before_the_hub(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    single(tmp_path / "org" / "name", "mine")
    source = find_base("org/name")
    assert (source.path, source.revision) == (Path("org/name"), None)


@pytest.mark.parametrize(
    "text", ["nowhere", "./org/name", "/org/name", "a/b/c", "../org", "org/name@", "org/", "~"]
)
def test_what_is_neither_path_nor_id(cache: Path, text: str) -> None:
    with pytest.raises(OtterError, match="does not exist") as caught:
        find_base(text)
    assert "org/name" in caught.value.hint


def test_pickles_alone_are_refused(cache: Path) -> None:
    folder = cache / "models--org--name" / "snapshots" / COMMIT
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(OtterError, match="no safetensors weights"):
        find_base("org/name")


def test_a_link_out_of_the_cache_is_refused(cache: Path, tmp_path: Path) -> None:
    folder = cache / "models--org--name" / "snapshots" / COMMIT
    secret = shutil.copy(folder / "config.json", tmp_path / "secret")
    (folder / "config.json").unlink()
    (folder / "config.json").symlink_to(secret)
    with pytest.raises(OtterError, match="leads outside"):
        Checkpoint.open(find_base("org/name").path)
