"""expectations.yaml: what a run must show, held against its intervals.

    expect:
      insertion:
        tokens_per_step: {at_least: 1.4}
        gold_reward: {at_least: 0.2, against: plain}
        perplexity: {at_most: 40, by: mean}

A bound holds where the whole 95 % interval keeps it; `by: mean` asks the mean alone.
"""

from pathlib import Path
from typing import Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from otter_cli.benchmarks.estimates import Estimate
from otter_cli.benchmarks.result import Result
from otter_cli.core.errors import OtterError
from otter_cli.core.strict_yaml import read_yaml
from otter_cli.core.suggest import closest

Found = TypeVar("Found")


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class Bound(_Part):
    at_least: float | None = None
    at_most: float | None = None
    against: Literal["plain"] | None = None
    by: Literal["interval", "mean"] = "interval"

    @model_validator(mode="after")
    def _bounds_something(self) -> Self:
        if self.at_least is None and self.at_most is None:
            raise ValueError("give at_least, at_most or both")
        return self

    def holds(self, figure: Estimate) -> bool:
        low, high = (figure.mean,) * 2 if self.by == "mean" else (figure.low, figure.high)
        above = self.at_least is None or low >= self.at_least
        return above and (self.at_most is None or high <= self.at_most)

    def __str__(self) -> str:
        bounds = (("at least", self.at_least), ("at most", self.at_most))
        text = ", ".join(f"{word} {value:g}" for word, value in bounds if value is not None)
        return text + " over plain" * bool(self.against) + ", by the mean" * (self.by == "mean")


class Expectations(_Part):
    benchmark: str | None = None
    expect: dict[str, dict[str, Bound]] = Field(min_length=1)


class Checked(_Part):
    """One bound with the figure that was held against it."""

    method: str
    metric: str
    bound: str
    figure: Estimate
    holds: bool


def read_expectations(path: Path) -> Expectations:
    """Raises OtterError, with the place, for what cannot be read as expectations."""
    values = read_yaml(path, hint="see `otter bench check --help`")
    try:
        return Expectations.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        raise OtterError(
            f"{path}: {'.'.join(map(str, first['loc'])) or 'the file'}: {first['msg']}",
            hint="for example `expect: {insertion: {tokens_per_step: {at_least: 1.4}}}`",
        ) from error


def check(result: Result, expected: Expectations) -> list[Checked]:
    """Every bound, kept or not. Raises OtterError for figures that the run does not have: an
    expectation of nothing would hold for ever."""
    if expected.benchmark not in (None, result.benchmark):
        raise OtterError(
            f"these are expectations of {expected.benchmark}, and the run is {result.benchmark}",
            hint="give a run of that benchmark",
        )
    return [
        _checked(result, method, metric, bound)
        for method, bounds in expected.expect.items()
        for metric, bound in bounds.items()
    ]


def _checked(result: Result, name: str, metric: str, bound: Bound) -> Checked:
    method = _of(result.methods, name, "the run has no method")
    figures = method.against_plain if bound.against else method.metrics
    where = "difference from plain in" if bound.against else "figure"
    figure = _of(figures, metric, f"method {name} has no {where}")
    return Checked(
        method=name, metric=metric, bound=str(bound), figure=figure, holds=bound.holds(figure)
    )


def _of(found: dict[str, Found], name: str, missing: str) -> Found:
    if name in found:
        return found[name]
    near = closest(name, found)
    raise OtterError(
        f"{missing} {name!r}",
        hint=(f"did you mean {near!r}? " if near else "") + f"there are {', '.join(found)}",
    )
