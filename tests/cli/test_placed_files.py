"""Where surgery writes, and what of it is shared with its source: as a user sees it."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Otter
from tests.support.grafts import random_graft
from tests.support.training import write_data, write_recipe

COMMANDS = {
    "graft": "graft base OUT",
    "graft onto a graft": "graft graft OUT --signal second=value",
    "strip": "strip graft OUT",
    "compose": "compose graft other OUT",
    "attach": "attach adapter base OUT",
    "export adapter": "export graft OUT --to adapter",
    "export base": "export graft OUT --to base",
    "export vllm": "export graft OUT --to vllm",
    "export wide": "export graft OUT --to wide",
}
SOURCES = ("base", "graft", "other", "adapter")


@pytest.fixture(scope="module")
def sources(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from otter_cli.serving.layouts import export_adapter

    place = tmp_path_factory.mktemp("sources")
    base = Path(shutil.copytree(tiny_llama, place / "base"))
    random_graft(base, place / "graft", hidden=8, heads=2, ffn=16, signals=("reward",))
    random_graft(base, place / "other", hidden=8, heads=2, ffn=16, signals=("other=value",))
    export_adapter(place / "graft", place / "adapter")
    write_data(place)
    write_recipe(place)
    return place


def words(name: str, sources: Path, out: Path) -> list[str]:
    places = {**{n: str(sources / n) for n in SOURCES}, "OUT": str(out)}
    verb, *rest = COMMANDS[name].partition(" --")[0].split()
    options = COMMANDS[name].split()[1 + len(rest) :]
    return [verb, *(places.get(word, word) for word in rest), *options]


def content(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("name", COMMANDS)
def test_writing_to_a_small_file_of_the_output_changes_no_source(
    otter_here: Otter, sources: Path, tmp_path: Path, name: str
) -> None:
    out = tmp_path / "new"
    done = otter_here(*words(name, sources, out), "--json")
    assert done.returncode == 0, done.stderr
    record: dict[str, Any] = json.loads(done.stdout)
    before = {n: content(sources / n) for n in SOURCES}
    inodes = {p.stat().st_ino for n in SOURCES for p in (sources / n).rglob("*")}
    shared = {p.name for p in out.rglob("*") if p.stat().st_ino in inodes}
    assert set(record["linked"]) == shared and all(n.endswith(".safetensors") for n in shared)
    for path in out.rglob("*"):
        if path.is_file() and path.name not in shared:
            with path.open("ab") as file:
                file.write(b"more")
    assert {n: content(sources / n) for n in SOURCES} == before


def test_what_is_shared_is_told(otter_here: Otter, sources: Path, tmp_path: Path) -> None:
    told = otter_here("graft", sources / "base", tmp_path / "linked").stdout
    assert "model.safetensors is a hard link: a change in it changes" in " ".join(told.split())
    copied = otter_here("graft", sources / "base", tmp_path / "copied", "--copy", "--json")
    record = json.loads(copied.stdout)
    assert record["linked"] == [] and "model.safetensors" in record["copied"]


@pytest.mark.parametrize("inside", SOURCES)
@pytest.mark.parametrize("name", COMMANDS)
def test_no_verb_writes_into_what_it_reads(
    otter_here: Otter, sources: Path, tmp_path: Path, name: str, inside: str
) -> None:
    if inside not in COMMANDS[name].partition(" --")[0].split()[1:]:
        pytest.skip("reads another folder")
    link = tmp_path / "link"
    link.symlink_to(sources / inside)
    before = content(sources / inside)
    for out in (sources / inside / "sub", link / "deep" / "sub"):
        done = otter_here(*words(name, sources, out))
        assert done.returncode == 2 and "lies inside" in done.stderr and "hint:" in done.stderr
    assert content(sources / inside) == before
    assert not (sources / inside / "deep").exists()


@pytest.mark.parametrize("baseline", ["head", "separate", "language-model", "probe"])
def test_a_baseline_is_not_written_into_the_graft(
    otter_here: Otter, sources: Path, baseline: str
) -> None:
    inner = sources / "graft" / "inner"
    ask = ("--recipe", sources / "recipe.yaml", "--baseline", baseline, "--to", inner)
    done = otter_here("train", sources / "graft", *ask)
    assert done.returncode == 2 and "lies inside" in done.stderr
    assert not inner.exists()
