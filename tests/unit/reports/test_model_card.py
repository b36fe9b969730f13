"""Training runs side by side: figures from the results, curves from metrics.jsonl."""

import json
from pathlib import Path

import pytest

from otter_cli.core.intervals import Interval
from otter_cli.reports.html import html_page
from otter_cli.reports.markdown import markdown_page
from otter_cli.reports.model_card import training_section
from otter_cli.reports.page import LinePlot, Report
from otter_cli.training.run import TrainResult


def result(folder: Path, *, accuracy: float, steps: int, toxicity: bool = True) -> TrainResult:
    (folder / "training").mkdir(parents=True)
    lines = [{"step": i + 1, "loss": {"reward": 1 / (i + 1)}} for i in range(steps)]
    lines.insert(1, {"step": 1, "evaluation": {}})
    (folder / "training" / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    signals = {"reward": {"accuracy": Interval(accuracy, accuracy - 0.01, accuracy + 0.01, 1675)}}
    if toxicity:
        signals["toxicity"] = {"f1": Interval(0.8, 0.7, 0.9, 500)}
    return TrainResult(folder, signals, steps, 61.0, 1_260_000, {}, {})


@pytest.fixture
def trained(tmp_path: Path) -> dict[str, TrainResult]:
    return {
        "insertion": result(tmp_path / "a", accuracy=0.980, steps=400),
        "separate": result(tmp_path / "b", accuracy=0.988, steps=20, toxicity=False),
    }


def test_every_figure_with_its_n_side_by_side(trained: dict[str, TrainResult]) -> None:
    page = markdown_page(Report("t", "l", [training_section(trained, "equal data")]))
    assert "equal data" in page
    for cell in ("0.980 0.970 to 0.990, n = 1,675", "0.988 0.978 to 0.998, n = 1,675"):
        assert cell in page
    assert "| toxicity: f1 | 0.800 0.700 to 0.900, n = 500 | - |" in page
    assert "| parameters trained | 1.26 M | 1.26 M |" in page


def test_the_loss_is_drawn_by_means_of_neighbours(trained: dict[str, TrainResult]) -> None:
    section = training_section(trained, "")
    (loss,) = section.plots
    assert isinstance(loss, LinePlot)
    (series,) = loss.series
    assert len(series.x) <= 100 and series.x[-1] == 400
    width = int(series.x[0])
    assert series.y[0] == pytest.approx(sum(1 / (i + 1) for i in range(width)) / width)
    assert html_page(Report("t", "l", [section])).count("<svg") == 1
