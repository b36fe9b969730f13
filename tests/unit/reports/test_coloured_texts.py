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
    ReportTable,
    colour_of,
    scale_of,
)
from otter_cli.reports.terminal import terminal_page

TEXT = ColouredText("plain", "It ", ["was", " <b>", " bad"], [0.9, None, 0.1], 0.0, 1.0, "ends low")
REPORT = Report("title", "lead", [ReportSection("texts", texts=[TEXT, TEXT])])


def test_a_page_gives_each_token_its_colour_and_number() -> None:
    page = html_page(REPORT)
    assert page.count('class="texts"') == 1 and page.count('class="tokens"') == 2
    for value, colour, bar, token in (
        ("+0.900", SIGNAL_COLOURS[-1], 6, "was"),
        ("+0.100", SIGNAL_COLOURS[0], 0, " bad"),
    ):
        assert (
            f'<span class="token" tabindex="0" style="--signal:{colour};--bar:{bar}px" '
            f'data-value="{value}" title="{value}">{token}</span>'
        ) in page
    assert "<span> &lt;b&gt;</span>" in page and "<b> bad" not in page
    assert "ends low" in page


def test_a_page_says_what_colours_and_bars_mean() -> None:
    """The scale has its ends in numbers. Colour alone says nothing to many readers."""
    page = html_page(REPORT)
    assert page.count('class="scale"') == 1
    assert "low +0.00" in page and "+1.00 high" in page and "The bar below a token" in page
    # A number comes up on hover and on focus, so every token can be focused.
    style = page[page.index("<style>") : page.index("</style>")]
    assert ".token:focus::after" in style and "attr(data-value)" in style


def test_headings_have_levels_and_tables_scroll_with_a_cue() -> None:
    table = ReportTable(["a", "b"], [["x", "1"]])
    sections = [
        ReportSection("first", texts=[TEXT], tables=[table], notes=["read it so"]),
        ReportSection("inner", texts=[TEXT], level=3),
    ]
    page = html_page(Report("title", "lead", sections))
    order = ["<h1>title", "<h2>first", "<h3>plain", "read it so", "<h3>inner", "<h4>plain"]
    places = [page.index(part) for part in order]
    assert places == sorted(places)
    assert '<div class="scroll" tabindex="0" role="region" aria-label=' in page
    assert "local" in page[page.index(".scroll {") :][:400]
    assert "### inner" in markdown_page(Report("title", "lead", sections))


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
