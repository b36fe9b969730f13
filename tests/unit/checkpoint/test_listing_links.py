"""Files of a hub cache are links to blobs, whose names are digests."""

import os
from pathlib import Path

import pytest

from otter_cli.checkpoint.folder import list_base_files
from otter_cli.core.errors import OtterError


def _snapshot(root: Path, name: str, size: int) -> Path:
    """One file of `size` bytes, without content, as a hub cache holds it."""
    blobs, snapshot = root / "models--a--b/blobs", root / "models--a--b/snapshots/c0ffee"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    blob = blobs / "5ab1e"
    blob.touch()
    os.truncate(blob, size)
    (snapshot / name).symlink_to(f"../../blobs/{blob.name}")
    return snapshot


def test_large_weights_of_a_hub_cache_are_weights_by_their_own_name(tmp_path: Path) -> None:
    folder = _snapshot(tmp_path, "model.safetensors", 5 * 10**9)
    assert list_base_files(folder) == ["model.safetensors"]


def test_a_refusal_names_the_link_and_not_its_blob(tmp_path: Path) -> None:
    folder = _snapshot(tmp_path, "README.md", 5 * 10**9)
    with pytest.raises(OtterError, match="over the limit") as caught:
        list_base_files(folder)
    assert str(folder / "README.md") in caught.value.what


def test_a_pipe_is_named_as_the_user_gave_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("base").mkdir()
    os.mkfifo("base/merges.txt")
    with pytest.raises(OtterError, match="^base/merges.txt: not a regular file"):
        list_base_files(Path("base"))


def test_a_link_to_nowhere_is_called_that(tmp_path: Path) -> None:
    (tmp_path / "README.md").symlink_to("nowhere")
    with pytest.raises(OtterError, match="'README.md' is a link to a file that does not exist"):
        list_base_files(tmp_path)
