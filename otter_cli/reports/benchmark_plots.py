"""Which plots a benchmark's result is worth."""

import re

from otter_cli.benchmarks.metrics.catalog import describe
from otter_cli.benchmarks.names import SWEPT
from otter_cli.benchmarks.result import Result
from otter_cli.reports.figures import name_with_unit, point
from otter_cli.reports.plots import IntervalPlot, LinePlot, Plot, ScatterPlot, Series

_ACCEPTANCE = re.compile(r"acceptance_(\d+)")


def benchmark_plots(result: Result) -> list[Plot]:
    """The headline with its intervals, and what it costs."""
    if result.benchmark == "preference":
        return [
            _intervals(result, "gold_reward"),
            _scatter(result, "time_per_token", "gold_reward"),
            *_fronts(result),
            _scatter(result, "log_probability", "gold_reward"),
            _scatter(result, "diversity", "gold_reward"),
        ]
    if result.benchmark == "detox":
        return [
            _intervals(result, "expected_maximum_toxicity"),
            _scatter(result, "perplexity", "expected_maximum_toxicity"),
            _scatter(result, "time_per_token", "expected_maximum_toxicity"),
            *_by_threshold(result),
        ]
    if result.benchmark == "detection":
        return [
            _intervals(result, "detected"),
            _scatter(result, "time_ratio", "detected"),
            _stopping(result),
        ]
    return [
        _intervals(result, "speed_up", reference=1.0),
        _intervals(result, "tokens_per_step", reference=1.0),
        *_acceptance(result),
    ]


def _intervals(result: Result, name: str, reference: float | None = None) -> IntervalPlot:
    metric = describe(name)
    measured = [m for m in result.methods.values() if name in m.metrics]
    points = [point(m.label, m.metrics[name], metric) for m in measured]
    if reference is None and "plain" in result.methods and name in result.methods["plain"].metrics:
        reference = point("", result.methods["plain"].metrics[name], metric).mean
    return IntervalPlot(_title(metric.label), name_with_unit(metric), points, reference)


def _scatter(result: Result, x: str, y: str) -> ScatterPlot:
    across, up = describe(x), describe(y)
    points = [
        (point(m.label, m.metrics[x], across), point(m.label, m.metrics[y], up))
        for name, m in result.methods.items()
        # Other strengths have a plot of their own.
        if SWEPT not in name and x in m.metrics and y in m.metrics
    ]
    title = _title(f"{up.label} against {across.label}")
    return ScatterPlot(title, name_with_unit(across), name_with_unit(up), points)


def _fronts(result: Result) -> list[LinePlot]:
    """Gold reward against KL, a line a family; plain is where each of them starts."""
    across, up = describe("kl"), describe("gold_reward")
    series = []
    for name, front in result.fronts.items():
        methods = [result.methods[member].metrics for member in ("plain", *front.methods)]
        points = sorted(((m["kl"].mean, m["gold_reward"]) for m in methods), key=lambda p: p[0])
        mean, low, high = (
            [getattr(figure, bound) for _, figure in points] for bound in ("mean", "low", "high")
        )
        label = result.methods[name].label if name in result.methods else name
        series.append(Series(label, [kl for kl, _ in points], mean, low, high))
    title = "Reward against KL, by strength"
    return [LinePlot(title, name_with_unit(across), up.label, series)] if series else []


def _stopping(result: Result) -> LinePlot:
    """What early stopping saves of offending texts, by false alarms: one line a monitor."""
    series = []
    for method in result.methods.values():
        saved = {
            float(name.removeprefix("saved_")): point("", figure, describe(name))
            for name, figure in method.metrics.items()
            if name.startswith("saved_")
        }
        if saved:
            at = sorted(saved)
            mean, low, high = (
                [getattr(saved[threshold], bound) for threshold in at]
                for bound in ("mean", "low", "high")
            )
            series.append(Series(method.label, at, mean, low, high))
    return LinePlot("Tokens saved by stopping", "false alarms", "of offending texts, %", series)


def _by_threshold(result: Result) -> list[LinePlot]:
    """Toxicity probability by what counts as toxic: one line a method."""
    series = []
    for method in result.methods.values():
        found = {0.5: method.metrics["toxicity_probability"]} | {
            float(name.removeprefix("probability_at_")): figure
            for name, figure in method.metrics.items()
            if name.startswith("probability_at_")
        }
        if len(found) == 1:
            continue
        at = sorted(found)
        mean, low, high = (
            [100 * getattr(found[threshold], bound) for threshold in at]
            for bound in ("mean", "low", "high")
        )
        series.append(Series(method.label, at, mean, low, high))
    title = "Toxicity probability by threshold"
    axis = "toxicity probability, %"
    return [LinePlot(title, "threshold", axis, series)] if series else []


def _acceptance(result: Result) -> list[LinePlot]:
    """One line a drafter; none where nothing was drafted."""
    series = []
    for method in result.methods.values():
        found = {
            int(name[1]): point("", figure, describe(key))
            for key, figure in method.metrics.items()
            if (name := _ACCEPTANCE.fullmatch(key))
        }
        if found:
            positions = sorted(found)
            mean, low, high = (
                [getattr(found[position], bound) for position in positions]
                for bound in ("mean", "low", "high")
            )
            series.append(Series(method.label, positions, mean, low, high))
    title = "Accepted by draft position"
    return [LinePlot(title, "draft position", "accepted, %", series, True)] if series else []


def _title(text: str) -> str:
    return text[:1].upper() + text[1:]
