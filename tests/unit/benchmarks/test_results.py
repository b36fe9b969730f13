"""What is committed below results/ is a run's result in the schema of this version."""

from pathlib import Path

import pytest

from otter_cli.benchmarks.metrics.estimates import metric_info
from otter_cli.benchmarks.results import BenchmarkResult
from otter_cli.benchmarks.runner.stored_run import BENCHMARKS

RESULTS = Path(__file__).parents[3] / "results"
COMMITTED = [path for kind in BENCHMARKS for path in sorted((RESULTS / kind).glob("*.json"))]


@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_a_committed_result_is_whole(path: Path) -> None:
    result = BenchmarkResult.model_validate_json(path.read_bytes())
    assert result.benchmark == path.parent.name
    assert result.key == result.settings.key
    for method in result.methods.values():
        for name, figure in method.metrics.items():
            assert metric_info(name) and figure.n == result.settings.prompts.count
            assert figure.low <= figure.high


def test_results_are_committed() -> None:
    assert {path.parent.name for path in COMMITTED} >= {"detection", "detox", "speedup"}
