"""Spoilt files are refused, or read as the safetensors library reads them; killed grafts leave all
or nothing. Nothing else happens, and the counts are printed."""

from pathlib import Path
from typing import Any

import pytest

from tests.property.damaged_bases import damaged_bases
from tests.property.damaged_surgery_count import (
    BASES,
    FILES,
    GRAFTS,
    KILLS,
    SEED,
    kills,
    mutated_files,
    mutated_grafts,
)
from tests.support.families import CASES

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
def test_what_graft_lets_pass_runs_and_what_it_refuses_doctor_names(
    tmp_path: Path, tiny_checkpoint: Any, capsys: Capture
) -> None:
    bases = [case.write(tiny_checkpoint) for case in CASES]
    found = damaged_bases(bases, tmp_path, BASES, SEED)
    with capsys.disabled():
        print(f"\n{BASES} damaged bases: {found['refused']} refused, {found['ran']} ran")
    assert min(found["refused"], found["ran"]) > BASES // 10


@pytest.mark.timeout(300)
def test_killed_grafts(tiny_llama: Path, capsys: Capture) -> None:
    found = kills(tiny_llama, KILLS)
    with capsys.disabled():
        print(
            f"\n{found['kills']} killed grafts: {found['nothing']} left nothing, "
            f"{found['whole']} were whole, and every next run succeeded"
        )
    assert found["kills"] >= 100 and found["nothing"] > KILLS // 20
