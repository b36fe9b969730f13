"""A finished run held against another run, or against expectations.yaml.

Two runs are compared by differences paired by prompt; runs with unlike settings are refused.
An expectation holds where the whole 95 % interval keeps the bound; `by: mean` tests the mean."""

from collections.abc import Iterator
from pathlib import Path
from typing import Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from otter_cli.benchmarks.metrics.estimates import Estimate, estimate_all, estimate_differences
from otter_cli.benchmarks.results import BenchmarkResult
from otter_cli.benchmarks.runner.stored_run import StoredRun, read_run
from otter_cli.core.errors import OtterError, closest
from otter_cli.core.strict_files import read_yaml

# What may differ between runs that are compared: their methods are what the question is about.
_MAY_DIFFER_PREFIX = "methods."


class MethodComparison(BaseModel):
    """One method of each run: figures of both, and the second's less the first's."""

    model_config = ConfigDict(extra="forbid")

    first: str
    second: str
    figures: dict[str, tuple[Estimate, Estimate]]
    differences: dict[str, Estimate]


class RunComparison(BaseModel):
    model_config = ConfigDict(extra="forbid")

    benchmark: str
    runs: tuple[str, str]
    prompts: int
    methods: list[MethodComparison]


def compare_runs(one: Path, other: Path, methods: tuple[str, str] | None = None) -> RunComparison:
    """The second run less the first, method by method of the same name, or one of each run.

    Raises OtterError where prompts, sampling, scorers or base differ: figures of unlike runs are
    not paired.
    """
    first, second = read_run(one), read_run(other)
    unlike = list(_unlike_settings(first, second))
    if unlike:
        raise OtterError(
            f"{one} and {other} differ in {', '.join(unlike[:3])}{' and more' * bool(unlike[3:])}",
            hint="a difference is paired by prompt: run both with the same prompts, sampling and "
            "scorers",
        )
    if methods is None:
        pairs = [(name, name) for name in first.result.methods if name in second.result.methods]
    else:
        pairs = [(_known_method(first, methods[0]), _known_method(second, methods[1]))]
    return RunComparison(
        benchmark=first.result.benchmark,
        runs=(str(one), str(other)),
        prompts=len(first.data.prompts),
        methods=[_compare_methods(first, second, *names) for names in pairs],
    )


def _compare_methods(first: StoredRun, second: StoredRun, one: str, other: str) -> MethodComparison:
    before, after = (run.kind.measures(n, run.data) for run, n in ((first, one), (second, other)))
    count = len(first.data.prompts)
    ours, theirs = (
        estimate_all(before, count, f"of {one}"),
        estimate_all(after, count, f"of {other}"),
    )
    shared = [name for name in ours if name in theirs]
    return MethodComparison(
        first=one,
        second=other,
        figures={name: (ours[name], theirs[name]) for name in shared},
        differences=estimate_differences(after, before, count),
    )


def _unlike_settings(first: StoredRun, second: StoredRun) -> Iterator[str]:
    changed = first.result.settings.differences(second.result.settings)
    yield from (name for name in changed if not name.startswith(_MAY_DIFFER_PREFIX))
    bases = [run.result.settings.methods["plain"].models[0].base for run in (first, second)]
    if bases[0] != bases[1]:
        yield "the base"
    one, other = first.result.scorers, second.result.scorers
    # A guide that scores is a method's own, and may differ as methods do.
    for role in sorted((one.keys() | other.keys()) - first.result.methods.keys()):
        if role not in one or role not in other or one[role].digest != other[role].digest:
            yield f"scorer {role}"


def _known_method(run: StoredRun, name: str) -> str:
    if name in run.result.methods:
        return name
    near = closest(name, run.result.methods)
    raise OtterError(
        f"{run.folder} has no method {name!r}",
        hint=(f"did you mean {near!r}? " if near else "")
        + f"its methods: {', '.join(run.result.methods)}",
    )


Value = TypeVar("Value")


class _ExpectationPart(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class ExpectedBound(_ExpectationPart):
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


class Expectations(_ExpectationPart):
    benchmark: str | None = None
    expect: dict[str, dict[str, ExpectedBound]] = Field(min_length=1)


class CheckedBound(_ExpectationPart):
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


def check_expectations(result: BenchmarkResult, expected: Expectations) -> list[CheckedBound]:
    """Every bound, kept or not. Raises OtterError for figures that the run does not have: an
    expectation of nothing would hold for ever."""
    if expected.benchmark not in (None, result.benchmark):
        raise OtterError(
            f"these are expectations of {expected.benchmark}, and the run is {result.benchmark}",
            hint="give a run of that benchmark",
        )
    return [
        _check_bound(result, method, metric, bound)
        for method, bounds in expected.expect.items()
        for metric, bound in bounds.items()
    ]


def _check_bound(
    result: BenchmarkResult, name: str, metric: str, bound: ExpectedBound
) -> CheckedBound:
    method = _lookup(result.methods, name, "the run has no method")
    figures = method.against_plain if bound.against else method.metrics
    where = "difference from plain in" if bound.against else "figure"
    figure = _lookup(figures, metric, f"method {name} has no {where}")
    return CheckedBound(
        method=name, metric=metric, bound=str(bound), figure=figure, holds=bound.holds(figure)
    )


def _lookup(found: dict[str, Value], name: str, missing: str) -> Value:
    if name in found:
        return found[name]
    near = closest(name, found)
    raise OtterError(
        f"{missing} {name!r}",
        hint=(f"did you mean {near!r}? " if near else "") + f"there are {', '.join(found)}",
    )
