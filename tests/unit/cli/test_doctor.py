import json

import pytest

from otter_cli.cli import doctor
from otter_cli.cli.doctor import Requirement
from otter_cli.cli.main import main


def test_this_environment_is_healthy(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["healthy"] is True
    assert report["problems"] == []
    assert report["versions"]["torch"]
    assert 0 < report["hardware"]["memory_available_bytes"] <= report["hardware"]["memory_bytes"]


def test_what_is_missing_is_named_and_fails_the_check(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = ["numpy>=99", "no-such-package>=1", "rich>=1", "peft; extra == 'other'"]
    monkeypatch.setattr(doctor.metadata, "requires", lambda package: lines)
    assert main(["doctor", "--json"]) == 1
    problems = json.loads(capsys.readouterr().out)["problems"]
    assert problems[0].startswith("numpy>=99: ")
    assert problems[1] == "no-such-package>=1: not installed"
    assert len(problems) == 2
    assert main(["doctor"]) == 1
    assert "missing: numpy>=99" in capsys.readouterr().out


def test_a_local_build_counts_as_its_release(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.metadata, "requires", lambda package: ["torch>=2.6,<=2.13.0"])
    monkeypatch.setattr(doctor.metadata, "version", lambda package: "2.13.0+cpu")
    assert doctor.requirements() == [Requirement("torch", "<=2.13.0,>=2.6", "2.13.0+cpu", True)]
