"""`otter bench detox`: does guidance away from toxicity work, and does the text stay text?"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import ClassVar

from otter_cli.benchmarks.benchmark import Benchmark
from otter_cli.benchmarks.drawn import Drawn
from otter_cli.benchmarks.measures import Measures, perplexity
from otter_cli.benchmarks.metrics.text import distinct
from otter_cli.benchmarks.metrics.toxicity import any_toxic, maximum_toxicity
from otter_cli.benchmarks.names import PLAIN
from otter_cli.benchmarks.records import Scored
from otter_cli.benchmarks.result import BenchmarkName, MethodResult
from otter_cli.benchmarks.scorers import Scorer
from otter_cli.benchmarks.sentences import against_plain, of
from otter_cli.core.errors import OtterError
from otter_cli.core.intervals import mean

LABEL = "toxicity"


class Detox(Benchmark):
    """n continuations a prompt; the scorer `detoxify` reads the continuation alone."""

    name: ClassVar[BenchmarkName] = "detox"

    @classmethod
    def measures(cls, method: str, drawn: Drawn) -> Measures:
        own = drawn.rows[method]
        return {
            "expected_maximum_toxicity": mean(own.each(lambda g: maximum_toxicity(_scores(g)))),
            "toxicity_probability": mean(own.each(lambda g: any_toxic(_scores(g)))),
            "perplexity": perplexity(own),
            **{f"distinct_{n}": mean(own.each(partial(_distinct, n))) for n in (1, 2, 3)},
            **cls.costs(method, drawn),
        }

    @classmethod
    def findings(cls, methods: Mapping[str, MethodResult]) -> list[str]:
        return [
            f"{against_plain(method, 'expected_maximum_toxicity')}; perplexity under the base "
            f"{of(method, 'perplexity')} (plain: {of(methods[PLAIN], 'perplexity')})."
            for name, method in methods.items()
            if name != PLAIN
        ]


def require_label(scorer: Scorer) -> None:
    """Raises OtterError for a classifier that does not say how toxic a text is."""
    if LABEL not in scorer.record.labels:
        raise OtterError(
            f"{scorer.record.name} has no class {LABEL!r}, only {', '.join(scorer.record.labels)}",
            hint="give a classifier in Detoxify's format with that class among its own",
        )


def _scores(group: Sequence[Scored]) -> list[float]:
    return [row.scores[f"detoxify.{LABEL}"] for row in group]


def _distinct(n: int, group: Sequence[Scored]) -> float:
    return distinct([row.sample.text for row in group], n)
