"""Figures that several benchmarks share, from one method's rows (METHOD, 5)."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from otter_cli.benchmarks.estimates import exponential, quotient
from otter_cli.benchmarks.records import Rows, Scored
from otter_cli.core.intervals import Statistic, mean, ratio

Measures = dict[str, Statistic]


def length(row: Scored) -> float:
    return len(row.sample.tokens)


def perplexity(rows: Rows) -> Statistic:
    """Of the continuation under the base given the prompt: by token, over all, nothing dropped."""
    surprise = rows.sums(lambda row: -sum(row.sample.logprobs))
    return exponential(ratio(surprise, rows.sums(length)))


def log_probability(rows: Rows) -> Statistic:
    """Mean per token under the base, nats. Of a greedy policy this is less its KL to the base."""
    return ratio(rows.sums(lambda row: sum(row.sample.logprobs)), rows.sums(length))


def divergence(rows: Rows, steering: Mapping[str, Any]) -> Measures:
    """KL of what is drawn from to the base, nats a token, by the tokens drawn: greedy choices are
    certain. Best of n adds its bound log n - (n - 1) / n a choice (Beirami et al., arXiv
    2401.01879). None where the drawing was not recorded."""
    if any(len(row.sample.drawn) != length(row) for group in rows.groups for row in group):
        return {}
    n, block = steering.get("n", 1), steering.get("block")
    bound = math.log(n) - (n - 1) / n

    def apart(row: Scored) -> float:
        choices = math.ceil(length(row) / block) if block else 1
        return sum(row.sample.drawn) - sum(row.sample.logprobs) + bound * choices

    return {"kl": ratio(rows.sums(apart), rows.sums(length))}


def costs(rows: Rows, plain: Rows) -> Measures:
    """Time per token in ms and of plain's, passes per token."""
    tokens = rows.sums(length)
    seconds = rows.sums(lambda row: row.timing.seconds)
    slower = quotient(ratio(seconds, tokens), seconds_per_token(plain))
    return {
        "tokens": mean(rows.means(length)),
        "time_per_token": ratio(1000 * seconds, tokens),
        "time_ratio": slower,
        "base_passes": ratio(rows.sums(lambda row: row.sample.counters.base_passes), tokens),
        "external_passes": ratio(
            rows.sums(lambda row: row.sample.counters.external_passes), tokens
        ),
    }


def seconds_per_token(rows: Rows) -> Statistic:
    return ratio(rows.sums(lambda row: row.timing.seconds), rows.sums(length))


def cache_bytes(rows: Rows) -> np.ndarray:
    """Per prompt, the bytes of the KV caches at their largest."""
    return rows.each(lambda group: max(row.sample.counters.cache_bytes for row in group))
