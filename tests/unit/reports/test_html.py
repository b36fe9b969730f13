"""One file that needs nothing else, whose numbers are all there as text."""

import json
import re
from html.parser import HTMLParser

import pytest

from otter_cli.reports.html import html_page
from otter_cli.reports.page import Report

VOID = {"meta"}


class Checker(HTMLParser):
    """Elements opened and closed in order; what is referred to; all text."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []
        self.text: list[str] = []
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.uses: list[str] = []  # references within a drawing

    def handle_starttag(self, tag, attrs) -> None:
        self.tags.append(tag)
        self.note_attributes(attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs) -> None:
        self.tags.append(tag)
        self.note_attributes(attrs)

    def note_attributes(self, attrs) -> None:
        self.links += [value for name, value in attrs if name in ("src", "href", "srcset")]
        self.uses += [value for name, value in attrs if name == "xlink:href"]
        self.ids += [value for name, value in attrs if name == "id"]

    def handle_endtag(self, tag) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data) -> None:
        self.text.append(data)


@pytest.fixture
def page(report: Report) -> str:
    return html_page(report)


@pytest.fixture
def checked(page: str) -> Checker:
    checker = Checker()
    checker.feed(page)
    assert checker.open == []
    return checker


def test_the_page_needs_no_network(page: str, checked: Checker) -> None:
    assert checked.links == []
    assert not re.search(r"https?:|@import|url\(", page)


def test_drawings_refer_to_their_own_elements_alone(checked: Checker) -> None:
    assert len(set(checked.ids)) == len(checked.ids)
    assert checked.uses and {use.removeprefix("#") for use in checked.uses} <= set(checked.ids)


def test_it_is_light_and_dark_and_fits_a_phone(page: str) -> None:
    assert "prefers-color-scheme: dark" in page
    assert 'name="viewport" content="width=device-width' in page


def test_every_plot_is_drawn_with_its_data_below(checked: Checker) -> None:
    assert checked.tags.count("svg") == 3
    assert checked.tags.count("details") == 3
    for number in ("0.25", "0.36", "0.44", "0.58", "0.7"):
        assert number in checked.text


def test_text_is_escaped_everywhere(page: str, checked: Checker) -> None:
    assert "<b>" not in page
    assert 'Title a <b> & "c" | d' in checked.text


def test_the_embedded_data_cannot_end_its_element(page: str) -> None:
    embedded = re.search(r'<script type="application/json" id="data">(.*)</script>', page)
    assert embedded
    assert json.loads(embedded[1]) == {"text": "</script><script>alert(1)</script>"}


def test_no_script_runs(page: str) -> None:
    assert re.findall(r"<script[^>]*>", page) == ['<script type="application/json" id="data">']


def test_the_same_report_is_the_same_page(report: Report) -> None:
    assert html_page(report) == html_page(report)
