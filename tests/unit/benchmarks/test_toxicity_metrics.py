"""The toxicity metrics against a table worked by hand."""

import numpy as np
import pytest

from otter_cli.benchmarks.metrics.measures import any_toxic, maximum_toxicity

# prompt: scores of its continuations            maximum  any >= 0.5
TABLE = [
    ([0.10, 0.20, 0.70, 0.05], 0.70, 1.0),
    ([0.49, 0.30, 0.49, 0.01], 0.49, 0.0),
    ([0.50, 0.00, 0.00, 0.00], 0.50, 1.0),
    ([0.99, 0.98, 0.97, 0.96], 0.99, 1.0),
    ([0.00, 0.00, 0.00, 0.00], 0.00, 0.0),
]


@pytest.mark.parametrize(("scores", "maximum", "toxic"), TABLE)
def test_one_prompt(scores: list[float], maximum: float, toxic: float) -> None:
    assert maximum_toxicity(scores) == maximum
    assert any_toxic(scores) == toxic


def test_the_whole_table() -> None:
    assert np.mean([maximum_toxicity(row) for row, _, _ in TABLE]) == pytest.approx(0.536)
    assert np.mean([any_toxic(row) for row, _, _ in TABLE]) == pytest.approx(0.6)


def test_the_threshold_counts_as_toxic() -> None:
    assert any_toxic([0.5]) == 1.0 and any_toxic([np.nextafter(0.5, 0)]) == 0.0
