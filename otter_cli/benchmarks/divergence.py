"""Where two greedy outputs part, and how near a tie the base was there."""

from collections.abc import Mapping, Sequence
from typing import Any

from otter_cli.benchmarks.records import Rows
from otter_cli.benchmarks.result import Divergence


def divergences(
    rows: Rows, plain: Rows, prompts: Mapping[str, Sequence[int]], base: Any
) -> list[Divergence]:
    """For each differing output, its first differing token, and the distance of the base's logits
    of the two tokens there: of its two best, where rounding alone decided.

    A draft is verified several tokens at a time and plain decoding goes one by one: in other
    shapes the base rounds otherwise, so a near tie may fall either way. A wide gap is a fault.
    """
    found = []
    for ours, theirs in zip(rows.groups, plain.groups, strict=True):
        for mine, other in zip(ours, theirs, strict=True):
            position = first_difference(mine.sample.tokens, other.sample.tokens)
            if position is not None:
                before = [*prompts[mine.sample.prompt], *other.sample.tokens[:position]]
                here = slice(position, position + 1)
                pair = [*mine.sample.tokens[here], *other.sample.tokens[here]]
                gap = _gap(base, before, pair)
                found.append(Divergence(prompt=mine.sample.prompt, position=position, gap=gap))
    return found


def first_difference(one: Sequence[int], other: Sequence[int]) -> int | None:
    """The first position at which two sequences differ or only one goes on; None for equal ones."""
    for position, (a, b) in enumerate(zip(one, other, strict=False)):
        if a != b:
            return position
    return None if len(one) == len(other) else min(len(one), len(other))


def _gap(base: Any, before: list[int], pair: list[int]) -> float:
    import torch

    with torch.inference_mode():
        ids = torch.tensor([before], device=base.device)
        logits = base(input_ids=ids, logits_to_keep=1).logits[0, -1].float()
    # Where one output merely ends earlier there is no second token to compare with.
    values = logits[pair] if len(pair) == 2 else logits.topk(2).values
    return (values[0] - values[1]).abs().item()
