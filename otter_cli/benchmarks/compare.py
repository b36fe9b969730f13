"""Two runs against each other: differences paired by prompt, or a refusal."""

from collections.abc import Iterator
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from otter_cli.benchmarks.estimates import Estimate
from otter_cli.benchmarks.outcome import differences, estimates
from otter_cli.benchmarks.stored import Stored, read_run
from otter_cli.core.errors import OtterError
from otter_cli.core.suggest import closest

# What may differ between runs that are compared: their methods are what the question is about.
_MAY_DIFFER = "methods."


class MethodComparison(BaseModel):
    """One method of each run: figures of both, and the second's less the first's."""

    model_config = ConfigDict(extra="forbid")

    first: str
    second: str
    figures: dict[str, tuple[Estimate, Estimate]]
    differences: dict[str, Estimate]


class Comparison(BaseModel):
    model_config = ConfigDict(extra="forbid")

    benchmark: str
    runs: tuple[str, str]
    prompts: int
    methods: list[MethodComparison]


def compare(one: Path, other: Path, methods: tuple[str, str] | None = None) -> Comparison:
    """The second run less the first, method by method of the same name, or one of each run.

    Raises OtterError where prompts, sampling, scorers or base differ: figures of unlike runs are
    not paired.
    """
    first, second = read_run(one), read_run(other)
    unlike = list(_unlike(first, second))
    if unlike:
        raise OtterError(
            f"{one} and {other} differ in {', '.join(unlike[:3])}{' and more' * bool(unlike[3:])}",
            hint="a difference is paired by prompt: run both with the same prompts, sampling and "
            "scorers",
        )
    if methods is None:
        pairs = [(name, name) for name in first.result.methods if name in second.result.methods]
    else:
        pairs = [(_known(first, methods[0]), _known(second, methods[1]))]
    return Comparison(
        benchmark=first.result.benchmark,
        runs=(str(one), str(other)),
        prompts=len(first.drawn.prompts),
        methods=[_compared(first, second, *names) for names in pairs],
    )


def _compared(first: Stored, second: Stored, one: str, other: str) -> MethodComparison:
    before, after = (run.kind.measures(n, run.drawn) for run, n in ((first, one), (second, other)))
    count = len(first.drawn.prompts)
    ours, theirs = estimates(before, count, f"of {one}"), estimates(after, count, f"of {other}")
    shared = [name for name in ours if name in theirs]
    return MethodComparison(
        first=one,
        second=other,
        figures={name: (ours[name], theirs[name]) for name in shared},
        differences=differences(after, before, count),
    )


def _unlike(first: Stored, second: Stored) -> Iterator[str]:
    changed = first.result.settings.differences(second.result.settings)
    yield from (name for name in changed if not name.startswith(_MAY_DIFFER))
    bases = [run.result.settings.methods["plain"].models[0].base for run in (first, second)]
    if bases[0] != bases[1]:
        yield "the base"
    one, other = first.result.scorers, second.result.scorers
    # A guide that scores is a method's own, and may differ as methods do.
    for role in sorted((one.keys() | other.keys()) - first.result.methods.keys()):
        if role not in one or role not in other or one[role].digest != other[role].digest:
            yield f"scorer {role}"


def _known(run: Stored, name: str) -> str:
    if name in run.result.methods:
        return name
    near = closest(name, run.result.methods)
    raise OtterError(
        f"{run.folder} has no method {name!r}",
        hint=(f"did you mean {near!r}? " if near else "")
        + f"its methods: {', '.join(run.result.methods)}",
    )
