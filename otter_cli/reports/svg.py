"""Plots as inline SVG, drawn by hand: no library in the page, colours from its style sheet.

A drawing is 380 units wide, which is a phone's width in pixels, so its letters stay readable there;
wide pages set several beside one another.
"""

from collections.abc import Iterable, Mapping

from otter_cli.reports.escaping import html_text
from otter_cli.reports.plots import IntervalPlot, LinePlot, Plot, Point, ScatterPlot, Series
from otter_cli.reports.scale import Scale, covering, tick_text, ticks

WIDTH = 380
_ROW = 40
_SQUARE = 260  # height of the drawings with two axes
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 12, 14, 44
_COLOURS = 12  # c0 to c11 of the style sheet

Colours = Mapping[str, str]  # a label's class


def colours_of(plots: Iterable[Plot]) -> dict[str, str]:
    """One colour a label, so that plots of the same things agree; those in legends come first: in
    an interval plot the labels are written out."""
    ordered = sorted(plots, key=lambda plot: isinstance(plot, IntervalPlot))
    labels = dict.fromkeys(label for plot in ordered for label in plot.labels())
    return {label: f"c{i % _COLOURS}" for i, label in enumerate(labels)}


def draw(plot: Plot, colours: Colours) -> str:
    """The plot as an <svg> element, with a legend where its labels are not written in it."""
    if isinstance(plot, IntervalPlot):
        return _intervals(plot, colours)
    drawn = _scatter(plot, colours) if isinstance(plot, ScatterPlot) else _lines(plot, colours)
    return drawn + _legend({label: colours[label] for label in plot.labels()})


def _intervals(plot: IntervalPlot, colours: Colours) -> str:
    height = _ROW * len(plot.points) + _BOTTOM + 4
    known = [v for p in plot.points for v in (p.low, p.high, p.mean)]
    known += [v for v in (plot.reference, *(p.bound for p in plot.points)) if v is not None]
    x = covering(known, 14, WIDTH - _RIGHT)
    base = height - _BOTTOM
    parts = [*_vertical_grid(x, 4, base), _text(WIDTH / 2, height - 6, plot.axis, "axis middle")]
    if plot.reference is not None:
        at = x(plot.reference)
        parts.append(_line(at, 4, at, base, "reference"))
    for i, point in enumerate(plot.points):
        y = _ROW * i + 29
        parts.append(_text(14, y - 11, point.label, "label"))
        parts.append(_interval(x, y, point, colours[point.label]))
    return _svg(plot.title, height, parts)


def _interval(x: Scale, y: float, point: Point, colour: str) -> str:
    line = _line(x(point.low), y, x(point.high), y, f"whisker {colour}")
    if point.bound is not None:
        at = x(point.bound)
        line += _line(at, y - 8, at, y + 8, f"bound {colour}", f"bound: {point.bound:.4g}")
    return line + _dot(x(point.mean), y, colour, f"{point.label}: {point.mean:.4g}")


def _scatter(plot: ScatterPlot, colours: Colours) -> str:
    x = covering((v for p, _ in plot.points for v in (p.low, p.high)), _LEFT, WIDTH - _RIGHT)
    y = covering((v for _, p in plot.points for v in (p.low, p.high)), _SQUARE - _BOTTOM, _TOP)
    parts = _frame(x, y, plot.x_axis, plot.y_axis)
    for at, up in plot.points:
        colour = colours[at.label]
        parts.append(_line(x(at.low), y(up.mean), x(at.high), y(up.mean), f"whisker {colour}"))
        parts.append(_line(x(at.mean), y(up.low), x(at.mean), y(up.high), f"whisker {colour}"))
        parts.append(_dot(x(at.mean), y(up.mean), colour, at.label))
    return _svg(plot.title, _SQUARE, parts)


def _lines(plot: LinePlot, colours: Colours) -> str:
    x = covering((v for s in plot.series for v in s.x), _LEFT, WIDTH - _RIGHT)
    y = covering((v for s in plot.series for v in (*s.y, *s.low, *s.high)), _SQUARE - _BOTTOM, _TOP)
    parts = _frame(x, y, plot.x_axis, plot.y_axis, whole=plot.whole_steps)
    for series in plot.series:
        parts += _curve(series, x, y, colours[series.label])
    return _svg(plot.title, _SQUARE, parts)


def _curve(series: Series, x: Scale, y: Scale, colour: str) -> list[str]:
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


def _frame(x: Scale, y: Scale, x_axis: str, y_axis: str, *, whole: bool = False) -> list[str]:
    bottom, left = y.start, x.start
    parts = _vertical_grid(x, _TOP, bottom, whole=whole)
    for value in ticks(y):
        parts.append(_line(left, y(value), WIDTH - _RIGHT, y(value), "grid"))
        parts.append(_text(left - 5, y(value) + 4, tick_text(value), "tick end"))
    middle = (left + WIDTH - _RIGHT) / 2
    parts.append(_text(middle, _SQUARE - 6, x_axis, "axis middle"))
    parts.append(_text(left, _TOP - 4, y_axis, "axis"))
    return parts


def _vertical_grid(x: Scale, top: float, bottom: float, *, whole: bool = False) -> list[str]:
    parts = []
    for value in ticks(x, whole=whole):
        parts.append(_line(x(value), top, x(value), bottom, "grid"))
        parts.append(_text(x(value), bottom + 16, tick_text(value), "tick middle"))
    return parts


def _svg(title: str, height: float, parts: Iterable[str]) -> str:
    return (
        f'<svg viewBox="0 0 {WIDTH} {height:g}" role="img" aria-label="{html_text(title)}">'
        f"{''.join(parts)}</svg>"
    )


def _legend(colours: Colours) -> str:
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
