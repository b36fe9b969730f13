"""A report as one HTML file: no network, no script that runs, light and dark.

The page is templates/page.html with the style sheet included. Every value that the template writes
is escaped: its control characters by `terminal_text`, then its markup by jinja2's autoescape.
Only `svg_plot` and `_json_data` return markup, and both escape the strings that they contain."""

import json
from functools import cache
from typing import TYPE_CHECKING, Any

from otter_cli.core.formatting import json_text, terminal_text
from otter_cli.reports.page import (
    FACTS_TITLE,
    SIGNAL_COLOURS,
    Report,
    ReportTable,
    as_cell,
    colour_of,
    level_of,
)
from otter_cli.reports.plots import colour_classes, svg_plot

if TYPE_CHECKING:
    from jinja2 import Environment


def html_text(text: str) -> str:
    """`text` for an element, and for an attribute's value in double quotes."""
    from markupsafe import escape

    return str(escape(terminal_text(text)))


def html_page(report: Report) -> str:
    """The whole page as text. The data of each plot are a folded table below it."""
    return _environment().get_template("page.html").render(report=report)


@cache
def _environment() -> "Environment":
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("otter_cli.reports"),
        autoescape=True,
        finalize=_without_control_characters,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["as_cell"] = as_cell
    environment.globals.update(
        ReportTable=ReportTable,
        colour_classes=colour_classes,
        colour_of=colour_of,
        signal_colours=SIGNAL_COLOURS,
        bar_of=_bar_height,
        facts_title=FACTS_TITLE,
        json_data=_json_data,
        svg_plot=svg_plot,
        zip=zip,
    )
    return environment


def _bar_height(value: float, low: float, high: float) -> int:
    """The height of the bar below a token, 0 to 6 pixels: the signal without its colour."""
    return level_of(value, low, high, len(SIGNAL_COLOURS))


def _without_control_characters(value: Any) -> Any:
    """Runs before autoescape. Markup, a subclass of str, stays as it is."""
    return terminal_text(value) if type(value) is str else value


def _json_data(data: Any) -> str:
    from markupsafe import Markup

    # Inside a string, `</script>` would end the element and `<!--` would hide its end.
    text = json_text(json.dumps(data, ensure_ascii=False, allow_nan=False))
    return Markup(text.replace("<", "\\u003c"))
