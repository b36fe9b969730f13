"""Reports of matrices: a cell without a figure has no plot of it, and a dash in its tables."""

import pytest

from otter_cli.benchmarks.matrix.over_seeds import Seeded, over_seeds
from otter_cli.benchmarks.matrix.recipe import Cell, Change, MatrixRecipe
from otter_cli.benchmarks.matrix.run import CellResult, MatrixResult, _require
from otter_cli.core.errors import OtterError
from otter_cli.reports import html_page, markdown_page
from otter_cli.reports.matrix import matrix_report

METRICS = ["detected", "tokens_seen"]


def _cell(texts: str, **figures: float) -> CellResult:
    of = {name: over_seeds([Seeded(value)]) for name, value in figures.items()}
    return CellResult(
        values={"texts": texts},
        parameters=None,
        figures=dict.fromkeys(("insertion", "probe", "head"), of),
        runs=["runs/a"],
    )


def test_a_cell_where_nothing_was_flagged_has_no_tokens_seen() -> None:
    cells = [_cell("here", detected=0.5, tokens_seen=3.0), _cell("elsewhere", detected=0.0)]
    result = MatrixResult(
        of="detection", recipe={}, metrics=METRICS, seeds=[0], cells=cells, provenance={}
    )
    report = matrix_report(result)
    here, elsewhere = report.sections
    assert (len(here.plots), len(elsewhere.plots)) == (2, 1)
    assert "| insertion | 0 one seed | - |" in markdown_page(report)
    assert "elsewhere" in html_page(report)


def test_a_figure_that_no_cell_has_yet_is_refused() -> None:
    asked = MatrixRecipe.model_construct(metrics=METRICS)
    later = Cell({"texts": "elsewhere"}, Change())
    cells = [_cell("here", detected=0.5, tokens_seen=3.0), _cell("elsewhere", detected=0.0)]
    _require(asked, later, cells)
    with pytest.raises(OtterError, match="cell 'texts elsewhere' has no figure 'tokens_seen'"):
        _require(asked, later, cells[1:])
