"""`otter demo` from nothing to its report, with little training: each part is there and holds."""

import json
from pathlib import Path
from typing import Any

import pytest

from otter_cli.demo import synthetic_demo
from tests.conftest import Otter

pytestmark = pytest.mark.slow


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(synthetic_demo, "GUIDED_PROMPTS", 4)
    monkeypatch.setattr(synthetic_demo, "DETOX_PROMPTS", 3)
    monkeypatch.setattr(synthetic_demo, "DETOX_SAMPLES", 2)
    monkeypatch.setattr(synthetic_demo, "DRAFT_PROMPTS", 3)


def test_the_whole_job_and_again(otter_here: Otter, tmp_path: Path, small: None) -> None:
    folder = tmp_path / "demo"
    command = ("demo", folder, "--tiny", "--set", "steps=12", "--set", "batch_size=4", "--json")
    first = otter_here(*command)
    assert first.returncode == 0, first.stderr
    data = json.loads(first.stdout)
    _is_whole(data, folder)
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "exact by construction" in page and "synthetic" in page
    assert "http://" not in page.replace("http://www.w3.org", "") and "https://" not in page

    # What is there is not done again: the same samples, byte for byte, and the same figures.
    samples = {path: path.read_bytes() for path in folder.glob("*/samples.jsonl")}
    again = json.loads(otter_here(*command).stdout)
    assert len(samples) == 3
    assert all(path.read_bytes() == content for path, content in samples.items())
    for name, result in data["bench"].items():
        assert again["bench"][name]["methods"] == result["methods"]
    assert again["train"]["insertion"]["signals"] == data["train"]["insertion"]["signals"]


def _is_whole(data: dict[str, Any], folder: Path) -> None:
    assert data["verify"]["verdict"] == "exact by construction"
    cases = data["verify"]["cases"]
    assert cases > 0
    assert data["verify"]["equal"] == data["verify"]["control"] == data["verify"]["poison"] == cases
    assert 0 < data["graft"]["parameter_ratio"] < 1
    assert set(data["train"]) == {"insertion", "head", "separate"}
    assert set(data["train"]["insertion"]["signals"]) == {"reward", "toxicity", "future"}
    assert set(data["bench"]) == {"preference", "detox", "speedup"}
    for result in data["bench"].values():
        assert {"plain", "insertion", "task-head"} <= set(result["methods"])
        for method in result["methods"].values():
            for figure in method["metrics"].values():
                assert set(figure) == {"mean", "low", "high", "n"}
                assert figure["low"] <= figure["mean"] <= figure["high"] and figure["n"] > 0
    assert "args" in data["bench"]["preference"]["methods"]
    assert Path(data["report"]) == folder / "report.html"
