"""Spoilt files are refused, or read as the safetensors library reads them; killed grafts leave all
or nothing. Nothing else happens, and the counts are printed."""

from pathlib import Path

import pytest

from tests.property.robustness import FILES, GRAFTS, KILLS, kills, mutated_files, mutated_grafts

Capture = pytest.CaptureFixture[str]


@pytest.mark.timeout(300)
def test_mutated_files(tmp_path: Path, capsys: Capture) -> None:
    found = mutated_files(tmp_path, FILES)
    with capsys.disabled():
        print(f"\n{FILES} mutated files: {found['refused']} refused, {found['sound']} still sound")
    assert FILES >= 2000 and min(found["refused"], found["sound"]) > FILES // 20


@pytest.mark.timeout(300)
def test_mutated_bases_of_a_graft(tmp_path: Path, tiny_llama: Path, capsys: Capture) -> None:
    found = mutated_grafts(tiny_llama, tmp_path, GRAFTS)
    with capsys.disabled():
        print(f"\n{GRAFTS} mutated bases: {found['refused']} refused, {found['sound']} grafted")
    assert GRAFTS >= 2000 and min(found["refused"], found["sound"]) > GRAFTS // 20


@pytest.mark.timeout(300)
def test_killed_grafts(tiny_llama: Path, capsys: Capture) -> None:
    found = kills(tiny_llama, KILLS)
    with capsys.disabled():
        print(
            f"\n{found['kills']} killed grafts: {found['nothing']} left nothing, "
            f"{found['whole']} were whole, and every next run succeeded"
        )
    assert found["kills"] >= 100 and found["nothing"] > KILLS // 20
