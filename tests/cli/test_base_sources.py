"""A base from the hub's cache and an adapter with its base, as a user types them, offline."""

import json
import shutil
from pathlib import Path

import pytest

from otter_cli.cli.main import main
from otter_cli.graft.manifest import Manifest
from tests.unit.checkpoint.test_base_source import COMMIT

SIZES = ("--hidden", "8", "--heads", "2", "--ffn", "16")


@pytest.fixture
def hub(tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache with tiny_llama as org/name, its files as links into blobs."""
    from huggingface_hub import constants

    repository = tmp_path / "hub" / "models--org--name"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(repository.parent))
    snapshot = repository / "snapshots" / COMMIT
    for folder in (snapshot, repository / "blobs", repository / "refs"):
        folder.mkdir(parents=True)
    (repository / "refs" / "main").write_text(COMMIT)
    for number, path in enumerate(sorted(tiny_llama.iterdir())):
        shutil.copy(path, repository / "blobs" / str(number))
        (snapshot / path.name).symlink_to(f"../../blobs/{number}")
    return repository


def _run(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict[str, object]:
    assert main([*map(str, arguments), "--json"]) == 0
    return dict(json.loads(capsys.readouterr().out))


def test_a_graft_onto_a_hub_id_records_the_commit(
    hub: Path, tiny_llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = _run(capsys, "graft", "org/name", tmp_path / "out", *SIZES)
    assert (told["base"], told["revision"]) == ("org/name", COMMIT)
    base = Manifest.read(tmp_path / "out").base
    assert (base.source, base.revision) == ("org/name", COMMIT)
    for path in tiny_llama.iterdir():
        placed = tmp_path / "out" / path.name
        assert not placed.is_symlink() and placed.read_bytes() == path.read_bytes()


def test_an_adapter_on_its_base_from_the_hub(
    hub: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _run(capsys, "graft", "org/name@main", tmp_path / "graft", *SIZES)
    _run(capsys, "export", tmp_path / "graft", tmp_path / "adapter", "--to", "adapter")
    told = _run(capsys, "attach", tmp_path / "adapter", "org/name", tmp_path / "again")
    assert told["revision"] == COMMIT and told["checked"] == 4
    assert Manifest.read(tmp_path / "again").base == Manifest.read(tmp_path / "graft").base


def test_refusals(
    hub: Path, tiny_llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _run(capsys, "graft", tiny_llama, tmp_path / "graft", *SIZES)
    _run(capsys, "export", tmp_path / "graft", tmp_path / "adapter", "--to", "adapter")
    for arguments, words in (
        (("graft", "org/absent", tmp_path / "x"), "neither a folder here nor whole"),
        (("graft", "org/name@v9", tmp_path / "x"), "org/name@v9"),
        (("graft", tmp_path / "adapter", tmp_path / "x"), "otter attach"),
        (("attach", tmp_path / "adapter", "org/absent", tmp_path / "x"), "org/absent"),
        (("attach", tiny_llama, tiny_llama, tmp_path / "x"), "otter.json"),
        (("attach", tmp_path / "adapter", tmp_path / "graft", tmp_path / "x"), "grafted already"),
    ):
        assert main([*map(str, arguments)]) == 2
        told = capsys.readouterr().err
        assert words in told and "hint:" in told and "Traceback" not in told
    assert not (tmp_path / "x").exists()


def test_a_base_in_the_cache_needs_no_torch(
    hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import subprocess
    import sys

    script = (
        "import sys; from otter_cli.cli.main import main\n"
        f"assert main(['graft', 'org/name', {str(tmp_path / 'out')!r}, '--quiet']) == 0\n"
        "assert not {'torch', 'transformers'} & set(sys.modules), 'heavy imports'"
    )
    monkeypatch.setenv("HF_HUB_CACHE", str(hub.parent))
    subprocess.run([sys.executable, "-c", script], check=True, stdout=subprocess.DEVNULL)
