"""`otter bench speedup`: tokens per step and per second against plain decoding.

Greedy drafted output should equal plain output. Where it differs, the gap between the base's logits
of the two tokens says whether rounding decided a near tie, or something is wrong."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from otter_cli.benchmarks.benchmark import Benchmark, figure_text
from otter_cli.benchmarks.metrics import measures
from otter_cli.benchmarks.metrics.estimates import Measures
from otter_cli.benchmarks.records import PLAIN, MethodRows, RunData
from otter_cli.benchmarks.results import BenchmarkName, Divergence, MethodResult
from otter_cli.data.pairs import shared_length


class Speedup(Benchmark):
    """Speculative decoding: drafts that the base verifies."""

    name: ClassVar[BenchmarkName] = "speedup"
    by_category = ("speed_up", "tokens_per_step", "identical")

    @classmethod
    def measures(cls, method: str, data: RunData) -> Measures:
        rows, plain = data.rows[method], data.rows[PLAIN]
        return {
            "speed_up": measures.speed_up(rows, plain),
            "tokens_per_step": measures.tokens_per_step(rows),
            "drafted_per_step": measures.drafted_per_step(rows),
            **measures.acceptance_by_position(rows),
            # Sampled text has the distribution of plain decoding, and not its tokens.
            **({"identical": measures.identical(rows, plain)} if data.greedy else {}),
            "tokens_per_second": measures.tokens_per_second(rows),
            **cls.costs(method, data),
        }

    def divergences(self, method: str, rows: Mapping[str, MethodRows]) -> list[Divergence]:
        if self.setting.sampling.temperature:
            return []
        prompts = {prompt.name: prompt.tokens for prompt in self.setting.prompts}
        return find_divergences(rows[method], rows[PLAIN], prompts, self.graft.model.base)

    @classmethod
    def findings(cls, methods: Mapping[str, MethodResult]) -> list[str]:
        return [_finding(method) for name, method in methods.items() if name != PLAIN]


def find_divergences(
    rows: MethodRows, plain: MethodRows, prompts: Mapping[str, Sequence[int]], base: Any
) -> list[Divergence]:
    """For each output that differs from plain's: its first differing token, and the gap of the
    base's logits of the two tokens there.

    A draft is verified several tokens at a time, and plain decoding goes one by one. Other shapes
    round otherwise, so a near tie may fall either way. A wide gap is a fault.
    """
    divergences = []
    for group, plain_group in zip(rows.groups, plain.groups, strict=True):
        for row, plain_row in zip(group, plain_group, strict=True):
            tokens, plain_tokens = row.sample.tokens, plain_row.sample.tokens
            position = first_difference(tokens, plain_tokens)
            if position is not None:
                name, end = row.sample.prompt, position + 1
                before = [*prompts[name], *plain_tokens[:position]]
                pair = [*tokens[position:end], *plain_tokens[position:end]]
                gap = _logit_gap(base, before, pair)
                divergences.append(Divergence(prompt=name, position=position, gap=gap))
    return divergences


def first_difference(one: Sequence[int], other: Sequence[int]) -> int | None:
    """The first position at which two sequences differ, or where only one ends; None if equal."""
    shared = shared_length(one, other)
    return None if shared == len(one) == len(other) else shared


def _logit_gap(base: Any, before: list[int], pair: list[int]) -> float:
    """Distance of the logits of two tokens; of the two best, where one output ends earlier."""
    import torch

    with torch.inference_mode():
        ids = torch.tensor([before], device=base.device)
        logits = base(input_ids=ids, logits_to_keep=1).logits[0, -1].float()
    values = logits[pair] if len(pair) == 2 else logits.topk(2).values
    return (values[0] - values[1]).abs().item()


def _finding(method: MethodResult) -> str:
    speed_up = method.metrics["speed_up"]
    verdict = "no difference from plain decoding shown"
    if speed_up.low > 1:
        verdict = "faster than plain decoding"
    elif speed_up.high < 1:
        verdict = "slower than plain decoding"
    below = " The speed-up is below 1." if speed_up.mean < 1 else ""
    return (
        f"{method.label}: speed-up {figure_text(method, 'speed_up')}, {verdict}, with "
        f"{figure_text(method, 'tokens_per_step')} tokens per step.{below} {_identity(method)}"
    )


def _identity(method: MethodResult) -> str:
    if "identical" not in method.metrics:
        return "Drafts are kept by rejection sampling: as plain decoding draws, not the same text."
    count, total = len(method.divergences), method.metrics["identical"].n
    if not count:
        return f"Output identical to plain greedy decoding on all {total} prompts."
    widest = max(method.divergences, key=lambda divergence: divergence.gap)
    return (
        f"Output differs from plain greedy decoding on {count} of {total} prompts; the base's two "
        f"best logits there are at most {widest.gap:.2g} apart (prompt {widest.prompt})."
    )
