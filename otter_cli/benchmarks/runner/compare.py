"""A finished run compared with another run, or with expectations.yaml.

Two runs are compared by differences paired by prompt; runs with unlike settings are refused. An
expectation holds where the whole 95 % interval keeps the bound; `by: mean` tests the mean."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal, Self, TypeVar

from pydantic import Field, ValidationError, model_validator

from otter_cli.benchmarks.metrics.estimates import Estimate, estimate_all, estimate_differences
from otter_cli.benchmarks.results import BenchmarkResult, ResultPart
from otter_cli.benchmarks.runner.stored_run import StoredRun, read_run
from otter_cli.core.errors import OtterError, did_you_mean
from otter_cli.core.strict_files import read_yaml

# Settings that may differ between two runs: methods are what the comparison is about.
_MAY_DIFFER_PREFIX = "methods."

Value = TypeVar("Value")


class MethodComparison(ResultPart):
    """A method of each run: the figures of both, and the second's less the first's."""

    first: str
    second: str
    figures: dict[str, tuple[Estimate, Estimate]]
    differences: dict[str, Estimate]


class RunComparison(ResultPart):
    benchmark: str
    runs: tuple[str, str]
    prompts: int
    methods: list[MethodComparison]


def compare_runs(
    first_folder: Path, second_folder: Path, methods: tuple[str, str] | None = None
) -> RunComparison:
    """The second run less the first: methods of the same name, or `methods`, one of each run.

    Raises OtterError where prompts, sampling, scorers or base differ: such figures are not paired.
    """
    first, second = read_run(first_folder), read_run(second_folder)
    unlike = list(_unlike_settings(first, second))
    if unlike:
        raise OtterError(
            f"{first_folder} and {second_folder} differ in {', '.join(unlike[:3])}"
            f"{' and more' * bool(unlike[3:])}",
            hint="a difference is paired by prompt: run both with the same prompts, sampling and "
            "scorers",
        )
    pairs = [(name, name) for name in first.result.methods if name in second.result.methods]
    if methods is not None:
        for run, name in zip((first, second), methods, strict=True):
            _lookup(run.result.methods, name, f"{run.folder} has no method")
        pairs = [methods]
    return RunComparison(
        benchmark=first.result.benchmark,
        runs=(str(first_folder), str(second_folder)),
        prompts=len(first.data.prompts),
        methods=[_compare_methods(first, second, *pair) for pair in pairs],
    )


def _unlike_settings(first: StoredRun, second: StoredRun) -> Iterator[str]:
    changed = first.result.settings.differences(second.result.settings)
    yield from (name for name in changed if not name.startswith(_MAY_DIFFER_PREFIX))
    bases = [run.result.settings.methods["plain"].models[0].base for run in (first, second)]
    if bases[0] != bases[1]:
        yield "the base"
    digests = [
        {role: scorer.digest for role, scorer in run.result.scorers.items()}
        for run in (first, second)
    ]
    # A scorer under a method's name is its guide, and may differ as methods do.
    for role in sorted((digests[0].keys() | digests[1].keys()) - first.result.methods.keys()):
        if digests[0].get(role) != digests[1].get(role):
            yield f"scorer {role}"


def _compare_methods(
    first: StoredRun, second: StoredRun, first_name: str, second_name: str
) -> MethodComparison:
    before = first.kind.measures(first_name, first.data)
    after = second.kind.measures(second_name, second.data)
    count = len(first.data.prompts)
    figures = estimate_all(before, count, f"of {first_name}")
    other = estimate_all(after, count, f"of {second_name}")
    return MethodComparison(
        first=first_name,
        second=second_name,
        figures={name: (figures[name], other[name]) for name in figures if name in other},
        differences=estimate_differences(after, before, count),
    )


class ExpectedBound(ResultPart):
    """A bound of a figure, or with `against` of its difference from plain decoding."""

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


class Expectations(ResultPart):
    """expectations.yaml: bounds by method and metric."""

    benchmark: str | None = None
    expect: dict[str, dict[str, ExpectedBound]] = Field(min_length=1)


class CheckedBound(ResultPart):
    """A bound, the figure that was checked, and whether the bound holds."""

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
    """Every bound, kept or not. Raises OtterError for a figure that the run does not have: an
    expectation about nothing would always hold."""
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


def _lookup(values: Mapping[str, Value], name: str, missing: str) -> Value:
    if name in values:
        return values[name]
    raise OtterError(
        f"{missing} {name!r}", hint=did_you_mean(name, values) + f"there are {', '.join(values)}"
    )
