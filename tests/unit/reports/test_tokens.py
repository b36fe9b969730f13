"""Generated text for people: colours and bars follow the signal, and the page stays 100 wide."""

from io import StringIO
from typing import Any

import pytest
from rich.console import Console

from otter_cli.reports.terminal import series_of, sparklines, text_lines, token_table


def _record(count: int, signals: dict[str, Any] | None = None) -> dict[str, Any]:
    rewards = [float(i) for i in range(count)]
    return {
        "prompt": "Say",
        "tokens": [{"id": i, "text": f" w{i}", "logprob": -0.5} for i in range(count)],
        "signals": {"reward": rewards} if signals is None else signals,
        "labels": {"tone": ["kind", "rude"]},
    }


def test_tokens_are_coloured_from_low_to_high() -> None:
    text, legend = text_lines(_record(7))
    assert text.plain == "Say w0 w1 w2 w3 w4 w5 w6"
    colours = [str(span.style) for span in text.spans]
    assert len(set(colours)) == 7
    assert legend.plain == "reward: low middle high"
    assert {str(span.style) for span in legend.spans} <= set(colours)
    assert str(legend.spans[0].style) == colours[0]
    assert str(legend.spans[-1].style) == colours[-1]


def test_without_signals_there_is_only_text() -> None:
    (text,) = text_lines(_record(3, {}))
    assert text.plain == "Say w0 w1 w2" and sparklines(_record(3, {})) == []


def test_a_sparkline_shows_each_value_and_the_range() -> None:
    (line,) = sparklines(_record(8))
    assert line.plain == "reward +0.00 ▁▂▃▄▅▆▇█ +7.00"


@pytest.mark.parametrize("count", [75, 120, 1000])
def test_long_texts_fit_the_page_and_keep_their_shape(count: int) -> None:
    (line,) = sparklines(_record(count))
    bars = [c for c in line.plain if c in "▁▂▃▄▅▆▇█"]
    assert len(line.plain) <= 100 and len(bars) > 60
    assert bars == sorted(bars) and bars[0] == "▁" and bars[-1] == "█"


def test_a_stretch_is_shown_by_its_mean() -> None:
    """One high value among a hundred low ones must not be lost between two bars."""
    values = [0.0] * 1000
    values[500] = 1.0
    (line,) = sparklines(_record(1000, {"reward": values}))
    assert line.plain.count("█") == 1


def test_a_signal_that_does_not_move_is_drawn_in_the_middle() -> None:
    (line,) = sparklines(_record(3, {"reward": [2.0, 2.0, 2.0]}))
    assert line.plain == "reward +2.00 ▅▅▅ +2.00"


def test_several_scores_are_called_by_their_labels() -> None:
    record = _record(2, {"tone": [[0.1, 0.9], [0.2, 0.8]], "many": [[1.0, 2.0], [3.0, 4.0]]})
    assert series_of(record) == {
        "tone.kind": [0.1, 0.2],
        "tone.rude": [0.9, 0.8],
        "many.0": [1.0, 3.0],
        "many.1": [2.0, 4.0],
    }


@pytest.mark.parametrize(("count", "rows"), [(3, 3), (24, 24), (25, 25), (60, 25)])
def test_the_table_shows_both_ends_of_a_long_text(count: int, rows: int) -> None:
    table = token_table(_record(count))
    assert table.row_count == rows
    console = Console(width=100, record=True, file=StringIO())
    console.print(table)
    page = console.export_text()
    assert f" w{count - 1} " in page and " w0 " in page
    assert ("..." in page) == (count > 24)


def test_an_answer_stands_below_its_message() -> None:
    record = _record(3, {})
    (plain,), (chat,) = text_lines(record), text_lines({**record, "chat": True})
    start = len(record["prompt"])
    assert chat.plain == plain.plain[:start] + "\n" + plain.plain[start:]
