"""Plots as inline SVG, drawn by matplotlib in the colours of the style sheet.

matplotlib sees no string from outside and no colour of the page. It draws numbered placeholders
and stand-in colours; then escaped text and CSS variables replace them, so one drawing is legible
in light and dark. A drawing is 380 units wide, a phone's width in pixels."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from otter_cli.core.formatting import terminal_text
from otter_cli.reports.page import IntervalPlot, LinePlot, Plot, ScatterPlot

if TYPE_CHECKING:
    from markupsafe import Markup

WIDTH = 380
_ROW_HEIGHT = 40  # of an interval plot: the label and, below it, the interval
_AXES_HEIGHT = 260  # of plots with two axes
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 12, 14, 44
_SIDE = 14  # left margin of an interval plot, which has no y axis
_MOST_DOTS = 12  # more would hide the line
_COLOURS = 12  # --c0 to --c11 of the style sheet

# Stand-in colours, and the variables of the style sheet that replace them.
_VARIABLES = [f"c{i}" for i in range(_COLOURS)] + ["card", "grid", "ink", "soft"]
_STAND_INS = {name: f"#0102{i:02x}" for i, name in enumerate(_VARIABLES, 1)}
_STYLE: dict[str, Any] = {
    "svg.fonttype": "none",  # text stays text
    "font.family": "DejaVu Sans",  # it comes with matplotlib, so positions are the same everywhere
    "font.size": 11,
    "text.color": _STAND_INS["soft"],
    "xtick.labelcolor": _STAND_INS["soft"],
    "ytick.labelcolor": _STAND_INS["soft"],
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "xtick.major.pad": 6,
    "ytick.major.pad": 6,
    "axes.facecolor": "none",
    "axes.spines.left": False,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.spines.bottom": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.xmargin": 0.06,
    "axes.ymargin": 0.06,
    "grid.color": _STAND_INS["grid"],
    "grid.linewidth": 1,
    "lines.solid_capstyle": "round",
}


def colour_classes(plots: Iterable[Plot]) -> dict[str, str]:
    """A class of the style sheet for each label, the same in all `plots`.

    Labels of legends come first: an interval plot has its labels beside the intervals.
    """
    ordered = sorted(plots, key=lambda plot: not plot.has_legend)
    labels = dict.fromkeys(label for plot in ordered for label in plot.labels())
    return {label: f"c{i % _COLOURS}" for i, label in enumerate(labels)}


def svg_plot(plot: Plot, colours: Mapping[str, str], id: str = "plot") -> Markup:
    """The plot as an <svg> element. `id` is unique on a page: the element ids are made from it."""
    import matplotlib.style
    from markupsafe import Markup, escape

    with matplotlib.style.context(["default", {**_STYLE, "svg.hashsalt": id}]):
        drawing = _Drawing(plot, {label: _STAND_INS[name] for label, name in colours.items()})
        svg = drawing.svg()

    def text(match: re.Match[str]) -> str:
        return escape(terminal_text(drawing.texts[int(match[1])]))

    # From matplotlib's document, what it draws: without declarations, styles and clip paths.
    svg = svg[svg.index('<g id="figure_1">') : svg.rindex("</g>") + len("</g>")]
    svg = re.sub(r' clip-path="[^"]*"', "", re.sub(r">\s+<", "><", svg))
    for name, colour in _STAND_INS.items():
        svg = svg.replace(colour, f"var(--{name})")
    svg = svg.replace("font-family: 'DejaVu Sans'", "font-family: inherit")
    # The title of a group is its tooltip. matplotlib's names of groups occur in every drawing.
    svg = re.sub(r'<g id="title-(\d+)">', r"<g><title>text-\1-</title>", svg)
    svg = re.sub(r'<g id="[^"]*"/>', "", svg)
    svg = re.sub(r'<g id="[^"]*">', "<g>", svg)
    head = f'<svg viewBox="0 0 {WIDTH} {drawing.height}" role="img" aria-label="text-0-">'
    return Markup(re.sub(r"text-(\d+)-", text, f"{head}{svg}</svg>"))


class _Drawing:
    """One figure. `texts` are the strings from outside, by the number in their placeholder."""

    def __init__(self, plot: Plot, colours: Mapping[str, str]) -> None:
        from matplotlib.figure import Figure

        self.texts = [plot.title]
        self.colours = colours
        self.height, left, top = _AXES_HEIGHT, _LEFT, _TOP
        if isinstance(plot, IntervalPlot):
            left, top = _SIDE, 4
            self.height = _ROW_HEIGHT * max(1, len(plot.points)) + _BOTTOM + top
        # At 72 dots per inch, matplotlib's points are the units of the drawing.
        size = (WIDTH / 72, self.height / 72)
        self.figure = Figure(figsize=size, dpi=72, frameon=False)
        width, height = WIDTH - left - _RIGHT, self.height - _BOTTOM - top
        self.axes = self.figure.add_axes(
            (left / WIDTH, _BOTTOM / self.height, width / WIDTH, height / self.height)
        )
        if isinstance(plot, IntervalPlot):
            self._draw_intervals(plot)
        elif isinstance(plot, ScatterPlot):
            self._draw_scatter(plot)
        else:
            self._draw_lines(plot)

    def svg(self) -> str:
        file = io.StringIO()
        no_metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        self.figure.savefig(file, format="svg", metadata=no_metadata)
        return file.getvalue()

    def _draw_intervals(self, plot: IntervalPlot) -> None:
        for i, point in enumerate(plot.points):
            y, colour = i + 0.72, self.colours[point.label]
            self._whisker((point.low, point.high), (y, y), colour)
            if point.bound is not None:
                self._line((point.bound,) * 2, (y - 0.2, y + 0.2), f"bound: {point.bound:.4g}",
                           color=colour, linewidth=2)  # fmt: skip
            self._dot(point.mean, y, colour, f"{point.label}: {point.mean:.4g}")
            self._text(_SIDE, self.height - _ROW_HEIGHT * i - 18, point.label, "ink", size=12)
        if plot.reference is not None:
            self.axes.axvline(plot.reference, color=_STAND_INS["soft"], lw=1, dashes=(4, 3))
        self.axes.set_ylim(max(1, len(plot.points)), 0)
        self.axes.set_yticks([])
        self._finish(plot.axis)

    def _draw_scatter(self, plot: ScatterPlot) -> None:
        for x, y in plot.points:
            colour = self.colours[x.label]
            self._whisker((x.low, x.high), (y.mean, y.mean), colour)
            self._whisker((x.mean, x.mean), (y.low, y.high), colour)
            self._dot(x.mean, y.mean, colour, x.label)
        self._finish(plot.x_axis, plot.y_axis)

    def _draw_lines(self, plot: LinePlot) -> None:
        for series in plot.series:
            colour = self.colours[series.label]
            self._line(series.x, series.y, color=colour, linewidth=2)
            if series.low:
                for x, low, high in zip(series.x, series.low, series.high, strict=True):
                    self._whisker((x, x), (low, high), colour)
            if len(series.x) <= _MOST_DOTS:
                for x, y in zip(series.x, series.y, strict=True):
                    self._dot(x, y, colour, f"{series.label}: {y:.4g}")
        self._finish(plot.x_axis, plot.y_axis, whole=plot.whole_steps)

    def _finish(self, x_axis: str, y_axis: str | None = None, *, whole: bool = False) -> None:
        from matplotlib.ticker import MaxNLocator

        axes, limits = self.axes, self.axes.dataLim
        # Counts, shares and times are not negative: the margin must not suggest that they are.
        if limits.x0 >= 0:
            axes.set_xlim(left=max(0.0, axes.get_xlim()[0]))
        axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10], integer=whole))
        axes.xaxis.set_major_formatter(lambda value, _: tick_text(value))
        left = 0 if y_axis is None else _LEFT
        self._text((left + WIDTH - _RIGHT) / 2, 6, x_axis, "soft", size=12, ha="center")
        if y_axis is not None:
            if limits.y0 >= 0:
                axes.set_ylim(bottom=max(0.0, axes.get_ylim()[0]))
            axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
            axes.yaxis.set_major_formatter(lambda value, _: tick_text(value))
            self._text(_LEFT, _AXES_HEIGHT - _TOP + 4, y_axis, "soft", size=12)

    def _line(self, x: Sequence[float], y: Sequence[float], title: str = "", **style: Any) -> None:
        gid = f"title-{self._placeholder(title)}" if title else None
        self.axes.plot(x, y, gid=gid, **style)

    def _whisker(self, x: Sequence[float], y: Sequence[float], colour: str) -> None:
        self._line(x, y, color=colour, linewidth=2.5, alpha=0.55)

    def _dot(self, x: float, y: float, colour: str, title: str) -> None:
        style = {"linestyle": "none", "marker": "o", "markersize": 9, "markeredgewidth": 1.5}
        self._line((x,), (y,), title, color=colour, markeredgecolor=_STAND_INS["card"], **style)

    def _text(self, x: float, y: float, text: str, colour: str, **style: Any) -> None:
        """At `x`, `y` in units of the drawing, from the bottom left."""
        word = f"text-{self._placeholder(text)}-"
        self.figure.text(x / WIDTH, y / self.height, word, color=_STAND_INS[colour], **style)

    def _placeholder(self, text: str) -> int:
        self.texts.append(text)
        return len(self.texts) - 1


def tick_text(value: float) -> str:
    """Short: 0.25, 1500, 2e6."""
    if value and not 1e-3 <= abs(value) < 1e5:
        return f"{value:.0e}".replace("e-0", "e-").replace("e+0", "e")
    return f"{value:.6g}"
