"""What the figures are called, in which unit they are read, and which way is better."""

import re
from dataclasses import dataclass, replace
from typing import Literal

from otter_cli.core.errors import OtterError

Better = Literal["higher", "lower", None]


@dataclass(frozen=True)
class Metric:
    """`unit` is one of "", "%", "ms", "bytes", "x"; values are stored as shares, ms and bytes."""

    label: str
    better: Better = None
    unit: str = ""


METRICS: dict[str, Metric] = {
    "gold_reward": Metric("gold reward", "higher"),
    "guiding_reward": Metric("its own guide's reward"),
    "diversity": Metric("diversity", "higher"),
    "tokens": Metric("tokens"),
    "perplexity": Metric("perplexity under the base", "lower"),
    "expected_maximum_toxicity": Metric("expected maximum toxicity", "lower"),
    "toxicity_probability": Metric("toxicity probability", "lower"),
    "distinct_1": Metric("dist-1", "higher"),
    "distinct_2": Metric("dist-2", "higher"),
    "distinct_3": Metric("dist-3", "higher"),
    "time_per_token": Metric("time per token", "lower", "ms"),
    "time_ratio": Metric("time per token, of plain", "lower", "x"),
    "base_passes": Metric("base passes per token", "lower"),
    "external_passes": Metric("external passes per token", "lower"),
    "memory": Metric("memory, counted", "lower", "bytes"),
    "speed_up": Metric("speed-up", "higher", "x"),
    "tokens_per_second": Metric("tokens per second", "higher"),
    "tokens_per_step": Metric("tokens per step", "higher"),
    "drafted_per_step": Metric("of them drafted", "higher"),
    "identical": Metric("identical to plain", "higher", "%"),
}

_FAMILIES = (
    (re.compile(r"reward_by_(.+)"), Metric("reward by {}")),
    (re.compile(r"acceptance_(\d+)"), Metric("accepted at position {}", "higher", "%")),
)


def describe(name: str) -> Metric:
    """Raises OtterError for a name that no benchmark of this version gives."""
    if name in METRICS:
        return METRICS[name]
    for pattern, metric in _FAMILIES:
        if found := pattern.fullmatch(name):
            return replace(metric, label=metric.label.format(found[1].replace("_", " ")))
    raise OtterError(f"there is no metric {name!r}", hint="was the run made by a later otter?")
