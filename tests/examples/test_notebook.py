"""The notebook runs from its first cell to its last, on a tiny base."""

import os
import sys
from pathlib import Path

import pytest

from tests.support.grafts import chat_base

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")


@pytest.fixture
def notebook(repository: Path) -> "nbformat.NotebookNode":
    return nbformat.read(repository / "examples/quickstart.ipynb", as_version=4)


@pytest.mark.slow
def test_the_notebook_runs(
    notebook: "nbformat.NotebookNode",
    repository: Path,
    tiny_llama: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pairs = repository / "examples/data/kind-answers.jsonl"
    monkeypatch.setenv("BASE", str(chat_base(tiny_llama, tmp_path / "base")))
    monkeypatch.setenv("PAIRS", str(pairs))
    monkeypatch.setenv("STEPS", "2")
    monkeypatch.setenv("PYTHONPATH", str(repository))
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    resources = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(notebook, timeout=240, resources=resources).execute()
    printed = [
        output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", ())
    ]
    shown = "".join(printed)
    assert "error:" not in shown
    assert (tmp_path / "out/training/card.md").exists()
    assert "weight 2.0: mean reward" in shown
    assert "equal to the last bit: True" in shown


def test_the_notebook_is_stored_with_the_outputs_of_all_its_cells(
    notebook: "nbformat.NotebookNode",
) -> None:
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert all(cell.outputs for cell in code[1:])
    assert "equal to the last bit: True" in code[-1].outputs[-1]["text"]
