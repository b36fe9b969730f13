"""Strings from outside are text in a report: never markup, an element, a link or a script."""

import dataclasses
import html
import re
from importlib import resources

import pytest
from jinja2 import UndefinedError
from markdown_it import MarkdownIt

from otter_cli.reports.html import _environment, html_page, html_text
from otter_cli.reports.markdown import markdown_page, markdown_paragraph, markdown_text
from otter_cli.reports.page import (
    Cell,
    ColouredText,
    IntervalPlot,
    LinePlot,
    PlotPoint,
    PlotSeries,
    Report,
    ReportSection,
    ReportTable,
    ScatterPlot,
)
from otter_cli.reports.plots import colour_classes, svg_plot
from tests.support.hostile_text import CONTROL, HOSTILE, shown_as

MARKS = {
    "heading": "# not a heading",
    "quote": "> not a quote",
    "list": "- not a list",
    "numbered": "12. not a list",
    "rule": "---",
    "underline": "=== x",
    "reference": "[x]: javascript:alert(1)",
    "autolink": "<javascript:alert(1)>",
    "image": "![x](http://example.org/pixel.png)",
    "entity": "&lt;b&gt; &#60;",
    "code": "`a` ``b``",
    "emphasis": "*a* _b_ __c__ ~~d~~",
    "cells": "a | b",
    "backslash": "a\\|b\\",
    "comment": "<!-- x",
    "two lines": "a\n# b",
}
TEXTS = {**HOSTILE, **MARKS}
hostile = pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)


def _report(text: str) -> Report:
    point = PlotPoint(text, 0.5, 0.4, 0.6, bound=0.3)
    plots = [
        IntervalPlot(text, text, [point]),
        ScatterPlot(text, text, text, [(point, point)]),
        LinePlot(text, text, text, [PlotSeries(text, [0.0, 1.0], [0.0, 1.0])]),
    ]
    table = ReportTable([text, text], [[text, Cell(text, text)]])
    coloured = ColouredText(text, text, [text, text], [0.5, None], 0.0, 1.0, text)
    section = ReportSection(text, [text], [table], plots, [coloured], [text])
    return Report(text, text, [section], [(text, text)], {text: text})


@hostile
def test_a_page_holds_no_control_character_and_no_element_of_a_string(text: str) -> None:
    page = html_page(_report(text))
    assert not CONTROL.search(page)
    elements = re.sub(r"<style>.*?</style>", "", page, flags=re.S)
    plain = html_page(_report("harmless"))
    tags = re.compile(r"<[a-z/!][^>]*>")
    values = re.compile(r'="[^"]*"')
    count = [
        len(tags.findall(p))
        for p in (elements, re.sub(r"<style>.*?</style>", "", plain, flags=re.S))
    ]
    assert count[0] == count[1]
    assert {values.sub("", tag) for tag in tags.findall(elements)} <= {
        values.sub("", tag) for tag in tags.findall(plain)
    }
    assert shown_as(text) in html.unescape(page)


@hostile
def test_markdown_shows_the_string_and_nothing_else(text: str) -> None:
    """By a CommonMark reader that lets HTML through: it must see text alone."""
    shown = " ".join(shown_as(text).split("\n"))
    tokens = (
        MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(markdown_paragraph(text))
    )
    assert [token.type for token in tokens] == ["paragraph_open", "inline", "paragraph_close"]
    children = tokens[1].children or []
    assert {child.type for child in children} <= {"text", "text_special"}
    assert "".join(child.content for child in children) == shown


@hostile
def test_a_cell_stays_a_cell(text: str) -> None:
    page = markdown_page(_report(text))
    assert not CONTROL.search(page)
    tokens = MarkdownIt("commonmark").enable("table").parse(page)
    kinds = {token.type for token in tokens}
    assert not kinds & {"html_block", "blockquote_open", "fence", "code_block", "hr"}
    cells = [t for t in tokens if t.type in ("th_open", "td_open")]
    assert len(cells) == 4
    for token in tokens:
        for child in token.children or []:
            assert child.type in ("text", "text_special"), (child.type, child.content)


def test_names_and_numbers_stay_readable() -> None:
    for text in ("expected_max_toxicity", "0.5, 0.4 to 0.6", "-", "runs/a-b.c", "n = 1,675"):
        assert markdown_text(text) == text


def test_attributes_are_closed_by_no_string() -> None:
    assert html_text("\" onload='x'") == "&#34; onload=&#39;x&#39;"


def test_every_template_is_escaped() -> None:
    assert _environment().autoescape is True
    for name in _environment().list_templates():
        text = resources.files("otter_cli.reports").joinpath("templates", name).read_text("utf-8")
        assert not re.search(r"\|\s*(safe|forceescape)\b|autoescape|markup", text, re.I), name
        # Attributes that hold a value are quoted, and no value lies in a script or a style.
        assert not re.search(r"=\s*\{\{", text), name
        parts = re.findall(r"(?s)<(?:script|style)\b.*?</", text)
        inside = [value for part in parts for value in re.findall(r"\{[{%].*?[%}]\}", part)]
        assert set(inside) <= {"{{ json_data(report.data) }}", '{% include "style.css" %}'}


def test_a_template_writes_control_characters_as_escapes() -> None:
    template = _environment().from_string('<i title="{{ text }}">{{ text }}</i>{{ text | upper }}')
    shown = template.render(text="\x1b<b>\u202e")
    assert shown == '<i title="{0}">{0}</i>{1}'.format(
        "\\x1b&lt;b&gt;\\u202e", "\\x1b&lt;B&gt;\\u202e"
    )
    with pytest.raises(UndefinedError):
        _environment().from_string("{{ missing }}").render()


def test_text_in_a_plot_is_neither_mathematics_nor_a_placeholder() -> None:
    text = "$x_1$ text-0- {0} \\alpha"
    plot = IntervalPlot("the title", text, [PlotPoint(text, 1, 0, 2)])
    svg = svg_plot(plot, colour_classes([plot]))
    assert svg.count(f">{text}</text>") == 2 and svg.count("the title") == 1


def test_every_string_of_a_report_is_tried() -> None:
    """A field that is added to a report must be added to the report of these tests."""
    names = {field.name for field in dataclasses.fields(Report)}
    assert names == {"title", "lead", "sections", "facts", "data"}
    assert {f.name for f in dataclasses.fields(ReportSection)} == {
        "title",
        "text",
        "tables",
        "plots",
        "texts",
        "notes",
        "level",
    }
