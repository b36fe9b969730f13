"""Reports of matrices: a cell without a figure has no plot of it, and a dash in its tables."""

import pytest

from otter_cli.benchmarks.matrix.recipe import CellChange, MatrixCell, MatrixRecipe
from otter_cli.benchmarks.matrix.run_matrix import (
    CellResult,
    MatrixResult,
    SeedFigure,
    aggregate_seeds,
    require_metrics,
)
from otter_cli.core.errors import OtterError
from otter_cli.reports.comparisons import matrix_report
from otter_cli.reports.html import html_page
from otter_cli.reports.markdown import markdown_page

METRICS = ["detected", "tokens_seen"]


def _cell(texts: str, **figures: float) -> CellResult:
    of = {name: aggregate_seeds([SeedFigure(value)]) for name, value in figures.items()}
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
    later = MatrixCell({"texts": "elsewhere"}, CellChange())
    cells = [_cell("here", detected=0.5, tokens_seen=3.0), _cell("elsewhere", detected=0.0)]
    require_metrics(asked, later, cells)
    with pytest.raises(OtterError, match="cell 'texts elsewhere' has no figure 'tokens_seen'"):
        require_metrics(asked, later, cells[1:])
