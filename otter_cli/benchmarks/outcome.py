"""From rows to a method's figures, with their intervals and what separates them from plain's."""

from otter_cli.benchmarks.benchmark import Benchmark
from otter_cli.benchmarks.drawn import Drawn
from otter_cli.benchmarks.estimates import Estimate, estimate
from otter_cli.benchmarks.measures import Measures, cache_bytes
from otter_cli.benchmarks.metrics.catalog import describe
from otter_cli.benchmarks.names import PLAIN
from otter_cli.benchmarks.result import Divergence, Memory, MethodResult
from otter_cli.core.intervals import difference


def outcome(
    kind: type[Benchmark], name: str, label: str, drawn: Drawn, divergences: list[Divergence]
) -> MethodResult:
    """The figures of method `name`. Raises OtterError where one is undefined or not finite."""
    measures = kind.measures(name, drawn)
    plain: Measures = {} if name == PLAIN else kind.measures(PLAIN, drawn)
    caches = int(cache_bytes(drawn.rows[name]).max())
    return MethodResult(
        label=label,
        metrics=estimates(measures, len(drawn.prompts), f"of {name}"),
        against_plain=differences(measures, plain, len(drawn.prompts)),
        by_category={of: _main(kind, name, drawn.only(of)) for of in drawn.categories},
        memory=Memory(weights=drawn.weights[name], caches=caches),
        divergences=divergences,
    )


def _main(kind: type[Benchmark], name: str, drawn: Drawn) -> dict[str, Estimate]:
    measures = kind.measures(name, drawn)
    main = {metric: measures[metric] for metric in kind.by_category if metric in measures}
    return estimates(main, len(drawn.prompts), f"of {name}, prompts of {drawn.prompts[0].category}")


def estimates(measures: Measures, prompts: int, whose: str) -> dict[str, Estimate]:
    return {name: estimate(m, prompts, f"{name} {whose}") for name, m in measures.items()}


def differences(measures: Measures, others: Measures, prompts: int) -> dict[str, Estimate]:
    """One less the other, on the same resamples of the prompts; what is a comparison already is
    left out."""
    paired = {
        metric: difference(measures[metric], others[metric])
        for metric in measures
        if metric in others and not describe(metric).relative
    }
    return estimates(paired, prompts, "as a difference")
