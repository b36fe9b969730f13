"""Figures in sentences: with their intervals, and no more than these show."""

from otter_cli.benchmarks.estimates import Estimate
from otter_cli.benchmarks.metrics.catalog import describe
from otter_cli.benchmarks.result import MethodResult


def of(method: MethodResult, metric: str) -> str:
    """`1.43 (1.38 to 1.48)`."""
    return interval_text(method.metrics[metric])


def interval_text(figure: Estimate) -> str:
    return f"{figure.mean:.3g} ({figure.low:.3g} to {figure.high:.3g})"


def percent(method: MethodResult, metric: str) -> str:
    """`43.1 % (40.2 to 46.0)`."""
    figure = method.metrics[metric]
    return f"{100 * figure.mean:.3g} % ({100 * figure.low:.3g} to {100 * figure.high:.3g})"


def times(method: MethodResult, metric: str) -> str:
    """`1.43 times (1.38 to 1.48)`."""
    figure = method.metrics[metric]
    return f"{figure.mean:.3g} times ({figure.low:.3g} to {figure.high:.3g})"


def against_plain(method: MethodResult, metric: str) -> str:
    """The paired difference, and whether its interval leaves nought out."""
    figure = method.against_plain[metric]
    name = describe(metric)
    by = f"{name.label} {figure.mean:+.3g} against plain ({figure.low:+.3g} to {figure.high:+.3g})"
    if figure.low <= 0 <= figure.high:
        return f"{method.label}: {by}, no difference shown"
    better = (figure.mean > 0) == (name.better == "higher")
    return f"{method.label}: {by}, {'better' if better else 'worse'}"
