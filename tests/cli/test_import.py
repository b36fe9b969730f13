"""`otter import` as it is typed, and what other verbs say to a GGUF file."""

import json
from pathlib import Path

import pytest

from tests.conftest import Otter
from tests.support.gguf_files import write_gguf


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gguf(tmp_path_factory.mktemp("gguf") / "tiny.Q4_0.gguf", tokenizer=True)


def test_import_graft_strip(source: Path, tmp_path: Path, otter_here: Otter) -> None:
    done = otter_here("import", source, tmp_path / "base", "--json")
    assert done.returncode == 0, done.stderr
    data = json.loads(done.stdout)
    assert data["family"] == "llama" and data["graft"] and data["graft_refuses"] is None
    assert data["source"]["quantisation"]["Q8_0"]["tensors"] and data["dtype"] == "bfloat16"
    grafted = otter_here("graft", tmp_path / "base", tmp_path / "graft", "--hidden", "8")
    assert grafted.returncode == 0, grafted.stderr
    # The record of the import is the base's: it goes along, and comes back.
    assert (tmp_path / "graft" / "otter.import.json").is_file()
    assert otter_here("strip", tmp_path / "graft", tmp_path / "again").returncode == 0
    names = sorted(path.name for path in (tmp_path / "base").iterdir())
    assert sorted(path.name for path in (tmp_path / "again").iterdir()) == names
    for name in names:
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "base" / name).read_bytes()


def test_the_view_says_that_the_base_is_dequantised(
    source: Path, tmp_path: Path, otter_here: Otter
) -> None:
    done = otter_here("import", source, tmp_path / "base", "--dtype", "float32")
    assert done.returncode == 0
    assert "llama" in done.stdout and "in float32" in done.stdout
    assert "dequantised from" in done.stdout and "not the model before quantisation" in done.stdout
    assert f"next: otter graft {tmp_path / 'base'} OUT" in done.stdout


def test_a_family_that_graft_refuses_is_imported_and_said(
    tmp_path: Path, otter_here: Otter
) -> None:
    file = write_gguf(tmp_path / "m.gguf", "mamba")
    done = otter_here("import", file, tmp_path / "out")
    assert done.returncode == 0 and (tmp_path / "out" / "config.json").is_file()
    assert "otter graft will refuse it: family 'mamba' is not supported" in done.stdout


@pytest.mark.parametrize(
    "arguments",
    [
        ["graft", "{}", "out"],
        ["inspect", "{}"],
        ["strip", "{}", "out"],
        ["attach", "{}", "{}", "out"],
        ["compose", "{}", "{}", "out"],
        ["verify", "{}"],
        ["verify", "{}", "--base", "{}"],
        ["export", "{}", "out", "--to", "base"],
        ["generate", "{}", "hello"],
        ["train", "{}", "--recipe", "preference/paradetox"],
    ],
    ids=" ".join,
)
@pytest.mark.parametrize("folder", [False, True])
def test_other_verbs_say_import_it_first(
    arguments: list[str], folder: bool, source: Path, otter_here: Otter
) -> None:
    given = str(source.parent if folder else source)
    done = otter_here(*(argument.replace("{}", given) for argument in arguments))
    assert done.returncode == 2
    assert f"hint: import it first: otter import {source} tiny.Q4_0-imported" in done.stderr


def test_errors_are_one_line_and_a_hint(tmp_path: Path, otter_here: Otter) -> None:
    (tmp_path / "page.gguf").write_text("<html>")
    done = otter_here("import", tmp_path / "page.gguf", tmp_path / "out")
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "error: " in done.stderr and "is not a GGUF file" in done.stderr
