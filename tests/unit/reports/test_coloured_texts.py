"""Texts whose tokens show a signal by their colour, in every form of a report."""

import io

import pytest
from rich.console import Console

from otter_cli.reports.html import html_page
from otter_cli.reports.markdown import markdown_page
from otter_cli.reports.page import (
    NEUTRAL,
    SIGNAL_COLOURS,
    ColouredText,
    Report,
    ReportSection,
    colour_of,
    scale_of,
)
from otter_cli.reports.terminal import terminal_page

TEXT = ColouredText("plain", "It ", ["was", " <b>", " bad"], [0.9, None, 0.1], 0.0, 1.0, "ends low")
REPORT = Report("title", "lead", [ReportSection("texts", texts=[TEXT, TEXT])])


def test_a_page_gives_each_token_its_colour_and_number() -> None:
    page = html_page(REPORT)
    assert page.count('class="texts"') == 1 and page.count('class="tokens"') == 2
    assert f'<span style="background:{SIGNAL_COLOURS[-1]}" title="+0.900">was</span>' in page
    assert f'<span style="background:{SIGNAL_COLOURS[0]}" title="+0.100"> bad</span>' in page
    assert "<span> &lt;b&gt;</span>" in page and "<b> bad" not in page
    assert "ends low" in page


def test_the_terminal_and_markdown_show_the_same_words() -> None:
    out = io.StringIO()
    Console(file=out, width=100).print(terminal_page(REPORT))
    assert "plain: It was <b> bad" in out.getvalue()
    assert "It was" in markdown_page(REPORT) and " bad" in markdown_page(REPORT)


@pytest.mark.parametrize(
    ("value", "colour"),
    [
        (0.0, SIGNAL_COLOURS[0]),
        (1.0, SIGNAL_COLOURS[-1]),
        (-5.0, SIGNAL_COLOURS[0]),
        (5.0, SIGNAL_COLOURS[-1]),
        (None, NEUTRAL),
        (float("nan"), NEUTRAL),
        (float("inf"), NEUTRAL),
    ],
)
def test_colours_of_values(value: float | None, colour: str) -> None:
    assert colour_of(value, 0.0, 1.0) == colour


def test_a_scale_is_that_of_the_finite_values() -> None:
    assert scale_of([None, 2.0, float("nan"), -1.0, float("inf")]) == (-1.0, 2.0)
    assert scale_of([None]) == (0.0, 0.0)
    assert colour_of(1.0, 1.0, 1.0) == NEUTRAL
