"""Figures: their names and units, their bootstrap intervals, and their differences.

Intervals are bootstrapped by prompt, so the samples of one prompt stay together. A mean is
`sum(x) / sum(1)`, a rate `sum(tokens) / sum(seconds)`. Comparisons use the same resamples,
which pairs them."""

import re
from dataclasses import dataclass
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict

from otter_cli.core.errors import OtterError
from otter_cli.core.intervals import Counts, Statistic, difference, interval

BetterDirection = Literal["higher", "lower", None]


@dataclass(frozen=True)
class Metric:
    """`unit`: "" or what the stored value is in, one of "share", "ms", "bytes". `relative`: already
    a comparison with plain decoding, so no difference from it is taken."""

    label: str
    better: BetterDirection = None
    unit: str = ""
    relative: bool = False
    # Told in a table of its own: "label" or "threshold".
    detail: Literal["label", "threshold", None] = None


METRICS: dict[str, Metric] = {
    "gold_reward": Metric("gold reward", "higher"),
    "win_rate": Metric("wins over plain by gold, ties half", "higher", "share", relative=True),
    "tie_rate": Metric("of them ties", unit="share", relative=True),
    "guiding_reward": Metric("reward by its own guide"),
    "reward_by_insertion": Metric("reward by the insertion"),
    "reward_by_task_head": Metric("reward by the task head"),
    "reward_by_args": Metric("reward by the reward model"),
    "diversity": Metric("diversity", "higher"),
    "log_probability": Metric("log-prob., nats", "higher"),
    "kl": Metric("KL to the base, nats a token", "lower"),
    "coherence": Metric("coherence", "higher"),
    "perplexity": Metric("perplexity under the base", "lower"),
    "expected_maximum_toxicity": Metric("expected maximum toxicity", "lower"),
    "toxicity_probability": Metric("toxicity probability", "lower"),
    "distinct_1": Metric("dist-1", "higher"),
    "distinct_2": Metric("dist-2", "higher"),
    "distinct_3": Metric("dist-3", "higher"),
    "auroc": Metric("AUROC, highest score", "higher"),
    "auroc_end": Metric("AUROC, last score", "higher"),
    "f1": Metric("F1 at 0.5", "higher"),
    "detected": Metric("flagged at 1 % false alarms", "higher", "share"),
    "on_time": Metric("flagged on time", "higher", "share"),
    "missed": Metric("missed", "lower", "share"),
    "tokens_seen": Metric("tokens read until then", "lower", "share"),
    "speed_up": Metric("speed-up", "higher", relative=True),
    "tokens_per_step": Metric("tokens per step", "higher"),
    "drafted_per_step": Metric("of them drafted", "higher"),
    "identical": Metric("identical to plain", "higher", "share", relative=True),
    "tokens_per_second": Metric("tokens per second", "higher"),
    "tokens": Metric("tokens"),
    "time_per_token": Metric("time per token", "lower", "ms"),
    "time_ratio": Metric("time per token over plain's", "lower", relative=True),
    "base_passes": Metric("base passes per token", "lower"),
    "external_passes": Metric("other passes per token", "lower"),
    "memory": Metric("memory, counted", "lower", "bytes"),
}

_STOPPING_NAME = re.compile(r"(saved|lost)_(0\.\d+)")
_MAXIMUM_NAME = re.compile(r"maximum_(\w+)")
_THRESHOLD_NAME = re.compile(r"probability_at_(0\.\d+)")
_REWARD_NAME = re.compile(r"reward_by_(\w+)")
_ACCEPTANCE_NAME = re.compile(r"acceptance_(\d+)")


def metric_info(name: str) -> Metric:
    """Raises OtterError for a name that no benchmark of this version gives."""
    if name in METRICS:
        return METRICS[name]
    if found := _STOPPING_NAME.fullmatch(name):
        better: BetterDirection = "higher" if found[1] == "saved" else "lower"
        share = f"{100 * float(found[2]):g} % false alarms"
        return Metric(f"tokens {found[1]} at {share}", better, "share")
    if found := _MAXIMUM_NAME.fullmatch(name):
        return Metric(found[1].replace("_", " "), "lower", detail="label")
    if found := _THRESHOLD_NAME.fullmatch(name):
        return Metric(f"reaches {found[1]}", "lower", "share", detail="threshold")
    if found := _REWARD_NAME.fullmatch(name):
        return Metric(f"reward by what guides {found[1].replace('_', ' ')}")
    if found := _ACCEPTANCE_NAME.fullmatch(name):
        return Metric(f"accepted at position {found[1]}", "higher", "share")
    raise OtterError(f"there is no metric {name!r}", hint="was the run made by a later otter?")


class Estimate(BaseModel):
    """A value with its 95 % percentile bootstrap interval; `n` counts the prompts resampled."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    mean: float
    low: float
    high: float
    n: int


def estimate(statistic: Statistic, n: int, what: str) -> Estimate:
    """Raises OtterError, naming `what`, for no prompts and for values that are not finite."""
    found = interval(statistic, n, what=what)
    return Estimate(mean=found.mean, low=found.low, high=found.high, n=found.n)


def exponential(inner: Statistic) -> Statistic:
    """exp of a figure: a perplexity from negative log-likelihoods per token."""
    return lambda counts: np.exp(inner(counts))


def quotient(one: Statistic, other: Statistic) -> Statistic:
    """`one / other` on the same prompts; undefined where `other` is 0."""

    def divided(counts: Counts) -> np.ndarray:
        tops, bottoms = one(counts), other(counts)
        return np.divide(tops, bottoms, out=np.full_like(tops, np.nan), where=bottoms != 0)

    return divided


Measures = dict[str, Statistic]


def estimate_all(measures: Measures, prompts: int, whose: str) -> dict[str, Estimate]:
    return {name: estimate(m, prompts, f"{name} {whose}") for name, m in measures.items()}


def estimate_differences(measures: Measures, others: Measures, prompts: int) -> dict[str, Estimate]:
    """One less the other, on the same resamples of the prompts; what is a comparison already is
    left out."""
    paired = {
        metric: difference(measures[metric], others[metric])
        for metric in measures
        if metric in others and not metric_info(metric).relative
    }
    return estimate_all(paired, prompts, "as a difference")
