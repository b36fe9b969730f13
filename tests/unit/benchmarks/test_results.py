"""What is committed below results/ is a run's result in the schema of this version."""

from pathlib import Path

import pytest

from otter_cli.benchmarks.kinds import KINDS
from otter_cli.benchmarks.metrics.catalog import describe
from otter_cli.benchmarks.result import Result

RESULTS = Path(__file__).parents[3] / "results"
COMMITTED = [path for kind in KINDS for path in sorted((RESULTS / kind).glob("*.json"))]


@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_a_committed_result_is_whole(path: Path) -> None:
    result = Result.model_validate_json(path.read_bytes())
    assert result.benchmark == path.parent.name
    assert result.key == result.settings.key
    for method in result.methods.values():
        for name, figure in method.metrics.items():
            assert describe(name) and figure.n == result.settings.prompts.count
            assert figure.low <= figure.high


def test_results_are_committed() -> None:
    assert {path.parent.name for path in COMMITTED} >= {"detection", "detox", "speedup"}
