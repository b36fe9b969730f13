"""`otter bench speedup`: tokens per step and per second against plain decoding, output compared."""

from collections.abc import Mapping
from typing import ClassVar

from otter_cli.benchmarks.benchmark import Benchmark
from otter_cli.benchmarks.divergence import divergences
from otter_cli.benchmarks.drawn import Drawn
from otter_cli.benchmarks.measures import Measures
from otter_cli.benchmarks.metrics import drafting
from otter_cli.benchmarks.names import PLAIN
from otter_cli.benchmarks.records import Rows
from otter_cli.benchmarks.result import BenchmarkName, Divergence, MethodResult
from otter_cli.benchmarks.sentences import of


class Speedup(Benchmark):
    """Decoding with drafts that the base verifies: greedy, it should write what plain writes."""

    name: ClassVar[BenchmarkName] = "speedup"
    by_category = ("speed_up", "tokens_per_step", "identical")

    @classmethod
    def measures(cls, method: str, drawn: Drawn) -> Measures:
        own, plain = drawn.rows[method], drawn.rows[PLAIN]
        return {
            "speed_up": drafting.speed_up(own, plain),
            "tokens_per_step": drafting.tokens_per_step(own),
            "drafted_per_step": drafting.drafted_per_step(own),
            **drafting.acceptance(own),
            # A drawn text is as likely as plain's, and not the same.
            **({"identical": drafting.identical(own, plain)} if drawn.greedy else {}),
            "tokens_per_second": drafting.tokens_per_second(own),
            **cls.costs(method, drawn),
        }

    def divergences(self, method: str, rows: Mapping[str, Rows]) -> list[Divergence]:
        if self.setting.sampling.temperature:
            return []
        prompts = {prompt.name: prompt.tokens for prompt in self.setting.prompts}
        return divergences(rows[method], rows[PLAIN], prompts, self.graft.model.base)

    @classmethod
    def findings(cls, methods: Mapping[str, MethodResult]) -> list[str]:
        return [_finding(method) for name, method in methods.items() if name != PLAIN]


def _finding(method: MethodResult) -> str:
    speed_up = method.metrics["speed_up"]
    verdict = (
        "faster than plain decoding"
        if speed_up.low > 1
        else "slower than plain decoding"
        if speed_up.high < 1
        else "no difference from plain decoding shown"
    )
    below = " The speed-up is below 1." if speed_up.mean < 1 else ""
    return (
        f"{method.label}: speed-up {of(method, 'speed_up')}, {verdict}, with "
        f"{of(method, 'tokens_per_step')} tokens per step.{below} {_identity(method)}"
    )


def _identity(method: MethodResult) -> str:
    if "identical" not in method.metrics:
        return "Drafts are kept by rejection sampling: as plain decoding draws, not the same text."
    count, total = len(method.divergences), method.metrics["identical"].n
    if not count:
        return f"Output identical to plain greedy decoding on all {total} prompts."
    widest = max(method.divergences, key=lambda d: d.gap)
    return (
        f"Output differs from plain greedy decoding on {count} of {total} prompts; the base's two "
        f"best logits there are at most {widest.gap:.2g} apart (prompt {widest.prompt})."
    )
