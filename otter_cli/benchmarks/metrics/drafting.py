"""Speculative decoding's counters as figures (METHOD, 5).

A step is a verification by the base: it gives one token of the base's own and what it accepted of
the draft. So steps are tokens less accepted drafts, in plain decoding too.
"""

from functools import partial

import numpy as np

from otter_cli.benchmarks.estimates import quotient
from otter_cli.benchmarks.measures import Measures, length, seconds_per_token
from otter_cli.benchmarks.records import Rows, Scored
from otter_cli.core.intervals import Statistic, mean, ratio


def tokens_per_step(rows: Rows) -> Statistic:
    """With the base's own token: 1 for plain decoding."""
    return ratio(rows.sums(length), rows.sums(_steps))


def drafted_per_step(rows: Rows) -> Statistic:
    """Without the base's own token: 0 for plain decoding."""
    return ratio(rows.sums(_accepted), rows.sums(_steps))


def acceptance(rows: Rows) -> Measures:
    """Per draft position (from 1), accepted of those drafted there."""
    counters = [row.sample.counters for group in rows.groups for row in group]
    positions = max((len(counter.drafted) for counter in counters), default=0)
    return {
        f"acceptance_{position + 1}": ratio(
            rows.sums(partial(_count, "accepted", position)), drafted
        )
        for position in range(positions)
        if (drafted := rows.sums(partial(_count, "drafted", position))).any()
    }


def speed_up(rows: Rows, plain: Rows) -> Statistic:
    """Tokens per second over plain's: a ratio of sums, with the same counter on both sides."""
    return quotient(seconds_per_token(plain), seconds_per_token(rows))


def tokens_per_second(rows: Rows) -> Statistic:
    return ratio(rows.sums(length), rows.sums(lambda row: row.timing.seconds))


def identical(rows: Rows, plain: Rows) -> Statistic:
    """Share of prompts on which the output is plain decoding's, token by token."""
    same = [
        all(a.sample.tokens == b.sample.tokens for a, b in zip(ours, theirs, strict=True))
        for ours, theirs in zip(rows.groups, plain.groups, strict=True)
    ]
    return mean(np.array(same, dtype=float))


def _accepted(row: Scored) -> float:
    return sum(row.sample.counters.accepted)


def _steps(row: Scored) -> float:
    return length(row) - _accepted(row)


def _count(which: str, position: int, row: Scored) -> float:
    counts: list[int] = getattr(row.sample.counters, which)
    return counts[position] if position < len(counts) else 0
