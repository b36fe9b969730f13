"""`otter export` as a user types it: every layout with its verdict."""

import json
from pathlib import Path

import pytest

from otter_cli.cli.main import main
from tests.conftest import Otter
from tests.support.grafts import random_graft


@pytest.fixture(scope="module")
def grafted(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("export") / "graft"
    return random_graft(tiny_llama, out, hidden=8, heads=2, ffn=16)


@pytest.mark.parametrize(
    ("layout", "verdict"), [("adapter", "exact"), ("base", "exact"), ("wide", "close")]
)
def test_layouts(otter: Otter, grafted: Path, tmp_path: Path, layout: str, verdict: str) -> None:
    done = otter("export", grafted, tmp_path / "out", "--to", layout, "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert (told["layout"], told["verdict"]) == (layout, verdict)
    there = {path.name for path in (tmp_path / "out").iterdir()}
    assert there == set(told["files"])
    assert bool(told["differences"]) == (layout == "wide")


def test_the_page_of_a_wide_export_says_what_moved(
    grafted: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    assert main(["export", str(grafted), str(tmp_path / "out"), "--to", "wide"]) == 0
    page = capsys.readouterr().out
    assert "not bit for bit" in page and "mathematically non-disruptive" in page
    for word in ("float32", "bfloat16", "logits moved", "argmaxes", "reward", "toxicity"):
        assert word in page


def test_a_signal_too_far_off_fails(
    grafted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from otter_cli.serving.wide import export

    monkeypatch.setattr(export, "TOLERANCES", dict.fromkeys(export.TOLERANCES, 0.0))
    assert main(["export", str(grafted), str(tmp_path / "out"), "--to", "wide"]) == 1


def test_refusals(
    tiny_llama: Path, grafted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments, words in (
        ((tiny_llama, tmp_path / "x", "--to", "wide"), "not a grafted folder"),
        ((grafted, tmp_path, "--to", "adapter"), "exists"),
        ((grafted, tmp_path / "x", "--to", "onnx"), "onnx"),
        ((grafted, tmp_path / "x"), "--to"),
    ):
        assert main(["export", *map(str, arguments)]) == 2
        told = capsys.readouterr().err
        assert words in told and "hint:" in told and "Traceback" not in told
    assert not list(tmp_path.iterdir())
