"""A report as one HTML file: no network, no script that runs, light and dark.

Plots are inline SVG in colours of the style sheet. A drawing is 380 units wide, a phone's width in
pixels. Names and texts from outside are escaped: in a page they are text, never an element."""

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from typing import Any

from otter_cli.core.formatting import json_text, terminal_text
from otter_cli.reports.page import (
    FACTS_TITLE,
    Cell,
    ColouredText,
    IntervalPlot,
    LinePlot,
    Plot,
    PlotPoint,
    PlotSeries,
    Report,
    ReportSection,
    ReportTable,
    ScatterPlot,
    as_cell,
)
from otter_cli.reports.tokens import colour_of


def html_text(text: str) -> str:
    """For the text of an element, and for an attribute's value in double quotes."""
    return escape(terminal_text(text))


@dataclass(frozen=True)
class AxisScale:
    """Maps `low`..`high` onto pixels `start`..`stop` (which may run downwards)."""

    low: float
    high: float
    start: float
    stop: float

    def __call__(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low)
        return round(self.start + share * (self.stop - self.start), 1)


def scale_covering(values: Iterable[float], start: float, stop: float) -> AxisScale:
    """A scale with a little air around the values, also where all of them are equal."""
    known = list(values)
    low, high = min(known), max(known)
    air = (high - low) * 0.06 or abs(high) * 0.1 or 1.0
    # Counts, shares and times are not below nothing: air must not suggest that they are.
    floor = 0.0 if low >= 0 else -math.inf
    return AxisScale(max(low - air, floor), high + air, start, stop)


def ticks(scale: AxisScale, about: int = 4, *, whole: bool = False) -> list[float]:
    """Round values inside the scale, in steps of 1, 2 or 5 times a power of ten."""
    raw = (scale.high - scale.low) / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * m for m in (1, 2, 5, 10) if power * m >= raw * 0.75)
    step = max(1.0, step) if whole else step
    first = math.ceil(scale.low / step - 1e-9)
    last = math.floor(scale.high / step + 1e-9)
    return [round(i * step, 10) for i in range(first, last + 1)]


def tick_text(value: float) -> str:
    if value and not 1e-3 <= abs(value) < 1e5:
        return f"{value:.0e}".replace("e-0", "e-").replace("e+0", "e")
    return f"{value:.6g}"


SVG_WIDTH = 380
_ROW_HEIGHT = 40
_AXES_HEIGHT = 260  # height of the drawings with two axes
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 12, 14, 44
_COLOURS = 12  # c0 to c11 of the style sheet

ColourClasses = Mapping[str, str]  # a label's class


def colour_classes(plots: Iterable[Plot]) -> dict[str, str]:
    """One colour a label, so that plots of the same things agree; those in legends come first: in
    an interval plot the labels are written out."""
    ordered = sorted(plots, key=lambda plot: isinstance(plot, IntervalPlot))
    labels = dict.fromkeys(label for plot in ordered for label in plot.labels())
    return {label: f"c{i % _COLOURS}" for i, label in enumerate(labels)}


def svg_plot(plot: Plot, colours: ColourClasses) -> str:
    """The plot as an <svg> element, with a legend where its labels are not written in it."""
    if isinstance(plot, IntervalPlot):
        return _intervals(plot, colours)
    drawn = _scatter(plot, colours) if isinstance(plot, ScatterPlot) else _lines(plot, colours)
    return drawn + _legend({label: colours[label] for label in plot.labels()})


def _intervals(plot: IntervalPlot, colours: ColourClasses) -> str:
    height = _ROW_HEIGHT * len(plot.points) + _BOTTOM + 4
    known = [v for p in plot.points for v in (p.low, p.high, p.mean)]
    known += [v for v in (plot.reference, *(p.bound for p in plot.points)) if v is not None]
    x = scale_covering(known, 14, SVG_WIDTH - _RIGHT)
    base = height - _BOTTOM
    parts = [
        *_vertical_grid(x, 4, base),
        _text(SVG_WIDTH / 2, height - 6, plot.axis, "axis middle"),
    ]
    if plot.reference is not None:
        at = x(plot.reference)
        parts.append(_line(at, 4, at, base, "reference"))
    for i, point in enumerate(plot.points):
        y = _ROW_HEIGHT * i + 29
        parts.append(_text(14, y - 11, point.label, "label"))
        parts.append(_interval(x, y, point, colours[point.label]))
    return _svg(plot.title, height, parts)


def _interval(x: AxisScale, y: float, point: PlotPoint, colour: str) -> str:
    line = _line(x(point.low), y, x(point.high), y, f"whisker {colour}")
    if point.bound is not None:
        at = x(point.bound)
        line += _line(at, y - 8, at, y + 8, f"bound {colour}", f"bound: {point.bound:.4g}")
    return line + _dot(x(point.mean), y, colour, f"{point.label}: {point.mean:.4g}")


def _scatter(plot: ScatterPlot, colours: ColourClasses) -> str:
    x = scale_covering(
        (v for p, _ in plot.points for v in (p.low, p.high)), _LEFT, SVG_WIDTH - _RIGHT
    )
    y = scale_covering(
        (v for _, p in plot.points for v in (p.low, p.high)), _AXES_HEIGHT - _BOTTOM, _TOP
    )
    parts = _frame(x, y, plot.x_axis, plot.y_axis)
    for at, up in plot.points:
        colour = colours[at.label]
        parts.append(_line(x(at.low), y(up.mean), x(at.high), y(up.mean), f"whisker {colour}"))
        parts.append(_line(x(at.mean), y(up.low), x(at.mean), y(up.high), f"whisker {colour}"))
        parts.append(_dot(x(at.mean), y(up.mean), colour, at.label))
    return _svg(plot.title, _AXES_HEIGHT, parts)


def _lines(plot: LinePlot, colours: ColourClasses) -> str:
    x = scale_covering((v for s in plot.series for v in s.x), _LEFT, SVG_WIDTH - _RIGHT)
    y = scale_covering(
        (v for s in plot.series for v in (*s.y, *s.low, *s.high)), _AXES_HEIGHT - _BOTTOM, _TOP
    )
    parts = _frame(x, y, plot.x_axis, plot.y_axis, whole=plot.whole_steps)
    for series in plot.series:
        parts += _curve(series, x, y, colours[series.label])
    return _svg(plot.title, _AXES_HEIGHT, parts)


def _curve(series: PlotSeries, x: AxisScale, y: AxisScale, colour: str) -> list[str]:
    path = " ".join(f"{x(a)},{y(b)}" for a, b in zip(series.x, series.y, strict=True))
    parts = [f'<polyline class="curve {colour}" points="{path}"/>']
    bounds = zip(series.x, series.low, series.high, strict=True) if series.low else ()
    for at, low, high in bounds:
        parts.append(_line(x(at), y(low), x(at), y(high), f"whisker {colour}"))
    if len(series.x) <= 12:  # more dots would hide the line
        parts += [
            _dot(x(a), y(b), colour, f"{series.label}: {b:.4g}")
            for a, b in zip(series.x, series.y, strict=True)
        ]
    return parts


def _frame(
    x: AxisScale, y: AxisScale, x_axis: str, y_axis: str, *, whole: bool = False
) -> list[str]:
    bottom, left = y.start, x.start
    parts = _vertical_grid(x, _TOP, bottom, whole=whole)
    for value in ticks(y):
        parts.append(_line(left, y(value), SVG_WIDTH - _RIGHT, y(value), "grid"))
        parts.append(_text(left - 5, y(value) + 4, tick_text(value), "tick end"))
    middle = (left + SVG_WIDTH - _RIGHT) / 2
    parts.append(_text(middle, _AXES_HEIGHT - 6, x_axis, "axis middle"))
    parts.append(_text(left, _TOP - 4, y_axis, "axis"))
    return parts


def _vertical_grid(x: AxisScale, top: float, bottom: float, *, whole: bool = False) -> list[str]:
    parts = []
    for value in ticks(x, whole=whole):
        parts.append(_line(x(value), top, x(value), bottom, "grid"))
        parts.append(_text(x(value), bottom + 16, tick_text(value), "tick middle"))
    return parts


def _svg(title: str, height: float, parts: Iterable[str]) -> str:
    return (
        f'<svg viewBox="0 0 {SVG_WIDTH} {height:g}" role="img" aria-label="{html_text(title)}">'
        f"{''.join(parts)}</svg>"
    )


def _legend(colours: ColourClasses) -> str:
    items = "".join(
        f'<li><i class="{colour}"></i>{html_text(label)}</li>' for label, colour in colours.items()
    )
    return f'<ul class="legend">{items}</ul>'


def _line(x1: float, y1: float, x2: float, y2: float, kind: str, title: str = "") -> str:
    shape = f'<line class="{kind}" x1="{x1:g}" y1="{y1:g}" x2="{x2:g}" y2="{y2:g}"'
    return f"{shape}><title>{html_text(title)}</title></line>" if title else f"{shape}/>"


def _dot(x: float, y: float, colour: str, title: str) -> str:
    shape = f'<circle class="dot {colour}" cx="{x:g}" cy="{y:g}" r="4.5">'
    return f"{shape}<title>{html_text(title)}</title></circle>"


def _text(x: float, y: float, text: str, kind: str) -> str:
    return f'<text class="{kind}" x="{x:g}" y="{y:g}">{html_text(text)}</text>'


def html_page(report: Report) -> str:
    """The whole page as text; the data behind each plot stands below it, folded."""
    style = files("otter_cli.reports").joinpath("style.css").read_text(encoding="utf-8")
    return "\n".join(
        [
            '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{html_text(report.title)}</title>\n<style>\n{style}</style>\n</head>",
            f'<body>\n<main>\n<h1>{html_text(report.title)}</h1>\n<p class="lead">',
            f"{html_text(report.lead)}</p>",
            *(_html_section(section) for section in report.sections),
            f"{_html_facts(report)}{_embedded_data(report.data)}</main>\n</body>\n</html>\n",
        ]
    )


def _html_section(section: ReportSection) -> str:
    parts = [f"<h2>{html_text(section.title)}</h2>"]
    parts += [f"<p>{html_text(paragraph)}</p>" for paragraph in section.text]
    if section.plots:
        colours = colour_classes(section.plots)
        figures = "".join(_figure(plot, colours) for plot in section.plots)
        parts.append(f'<div class="plots">{figures}</div>')
    if section.texts:
        parts.append(f'<div class="texts">{"".join(map(_coloured, section.texts))}</div>')
    parts += [_html_table(table) for table in section.tables]
    return f"<section>\n{chr(10).join(parts)}\n</section>"


def _coloured(text: ColouredText) -> str:
    """Tokens with their signal as background; a reader finds the number in each token's title."""
    spans = []
    for token, value in zip(text.tokens, text.values, strict=True):
        if value is None:
            spans.append(f"<span>{html_text(token)}</span>")
            continue
        colour = colour_of(value, text.low, text.high)
        spans.append(
            f'<span style="background:{colour}" title="{value:+.3f}">{html_text(token)}</span>'
        )
    detail = f"<small>{html_text(text.detail)}</small>" if text.detail else ""
    return (
        f'<div class="tokens"><b>{html_text(text.label)}</b>{detail}'
        f'<p><span class="prompt">{html_text(text.prompt)}</span>{"".join(spans)}</p></div>'
    )


def _html_table(table: ReportTable) -> str:
    head = "".join(f'<th scope="col">{html_text(column)}</th>' for column in table.columns)
    rows = []
    for row in table.rows:
        first, *others = map(as_cell, row)
        cells = f'<th scope="row">{_html_cell(first)}</th>' + "".join(
            f'<td class="{cell.tone}">{_html_cell(cell)}</td>' for cell in others
        )
        rows.append(f"<tr>{cells}</tr>")
    kind = ' class="numeric"' if table.numeric else ""
    body = "\n".join(rows)
    return (
        f'<div class="scroll"><table{kind}><thead><tr>{head}</tr></thead>\n'
        f"<tbody>{body}</tbody></table></div>"
    )


def _html_cell(cell: Cell) -> str:
    detail = f"<small>{html_text(cell.detail)}</small>" if cell.detail else ""
    return html_text(cell.text) + detail


def _figure(plot: Plot, colours: ColourClasses) -> str:
    head, *rows = plot.data()
    data = _html_table(ReportTable(head, rows))
    return (
        f"<figure><h3>{html_text(plot.title)}</h3>{svg_plot(plot, colours)}"
        f"<details><summary>data</summary>{data}</details></figure>"
    )


def _html_facts(report: Report) -> str:
    if not report.facts:
        return ""
    facts = "".join(f"<dt>{html_text(k)}</dt><dd>{html_text(v)}</dd>" for k, v in report.facts)
    return f'<section>\n<h2>{FACTS_TITLE}</h2>\n<dl class="facts">{facts}</dl>\n</section>\n'


def _embedded_data(data: Any) -> str:
    if data is None:
        return ""
    # Inside a string, `</script>` would end the element and `<!--` would hide its end.
    text = json_text(json.dumps(data, ensure_ascii=False, allow_nan=False))
    text = text.replace("<", "\\u003c")
    return f'<script type="application/json" id="data">{text}</script>\n'
