"""Figures: their names and units, their bootstrap intervals, and their differences.

Intervals are bootstrapped by prompt, so the samples of one prompt stay together. A mean is
`sum(x) / sum(1)`, a rate `sum(tokens) / sum(seconds)`. Both sides of a comparison use the same
resamples, which pairs them."""

import re
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict

from otter_cli.core.errors import OtterError
from otter_cli.core.intervals import Counts, Statistic, difference, interval

BetterDirection = Literal["higher", "lower", None]
# Metrics by name, before their figures are estimated.
Measures = dict[str, Statistic]


@dataclass(frozen=True)
class Metric:
    """`unit`: of the stored value: "", "share", "ms" or "bytes". `relative`: already a comparison
    with plain decoding, so no difference from it is taken. `detail`: shown in a separate table,
    by label or by threshold."""

    label: str
    better: BetterDirection = None
    unit: str = ""
    relative: bool = False
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

# Metrics whose names end in a rate, a threshold, a label, a method or a position.
_FAMILIES: dict[str, Callable[[str], Metric]] = {
    r"saved_(0\.\d+)": lambda rate: Metric(f"tokens saved at {_alarms(rate)}", "higher", "share"),
    r"lost_(0\.\d+)": lambda rate: Metric(f"tokens lost at {_alarms(rate)}", "lower", "share"),
    r"maximum_(\w+)": lambda label: Metric(_words(label), "lower", detail="label"),
    r"probability_at_(0\.\d+)": lambda threshold: Metric(
        f"reaches {threshold}", "lower", "share", detail="threshold"
    ),
    r"reward_by_(\w+)": lambda method: Metric(f"reward by what guides {_words(method)}"),
    r"acceptance_(\d+)": lambda place: Metric(f"accepted at position {place}", "higher", "share"),
}


def _alarms(rate: str) -> str:
    return f"{100 * float(rate):g} % false alarms"


def _words(name: str) -> str:
    return name.replace("_", " ")


def metric_info(name: str) -> Metric:
    """Raises OtterError for a name that no benchmark of this version gives."""
    if name in METRICS:
        return METRICS[name]
    for pattern, family in _FAMILIES.items():
        if match := re.fullmatch(pattern, name):
            return family(match[1])
    raise OtterError(f"there is no metric {name!r}", hint="was the run made by a later otter?")


class Estimate(BaseModel):
    """A figure with its 95 % percentile bootstrap interval over `n` resampled prompts."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    mean: float
    low: float
    high: float
    n: int


def estimate(statistic: Statistic, n: int, what: str) -> Estimate:
    """Raises OtterError, naming `what`, without prompts and for a value that is not finite."""
    return Estimate(**asdict(interval(statistic, n, what=what)))


def exponential(inner: Statistic) -> Statistic:
    """exp of a figure, such as a perplexity from negative log-likelihoods per token."""
    return lambda counts: np.exp(inner(counts))


def quotient(one: Statistic, other: Statistic) -> Statistic:
    """`one / other` on the same prompts; NaN where `other` is 0."""

    def divided(counts: Counts) -> np.ndarray:
        tops, bottoms = one(counts), other(counts)
        return np.divide(tops, bottoms, out=np.full_like(tops, np.nan), where=bottoms != 0)

    return divided


def estimate_all(measures: Measures, prompts: int, whose: str) -> dict[str, Estimate]:
    return {name: estimate(m, prompts, f"{name} {whose}") for name, m in measures.items()}


def estimate_differences(measures: Measures, others: Measures, prompts: int) -> dict[str, Estimate]:
    """`measures` less `others`, on the same resamples of the prompts. Metrics that are comparisons
    already are left out."""
    paired = {
        metric: difference(measures[metric], others[metric])
        for metric in measures
        if metric in others and not metric_info(metric).relative
    }
    return estimate_all(paired, prompts, "as a difference")
