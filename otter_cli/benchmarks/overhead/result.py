"""result.json of `otter bench overhead`: rows of figures, each with its lower bound."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from pydantic import Field

from otter_cli.benchmarks.metrics.estimates import Estimate, estimate
from otter_cli.benchmarks.overhead.measuring import MachineRates
from otter_cli.benchmarks.results import ResultFile, ResultPart
from otter_cli.core.intervals import median

SCHEMA_VERSION = 1


class OverheadSettings(ResultPart):
    """What was measured and how; `context` is the length of the prefill, and of the decoding's
    prompt."""

    subject: str
    dtype: str
    device: str
    threads: int
    batch: int
    context: int
    repeats: int
    stream: str = Field("", description="by what it ran: native code, or why by torch")


class BaseAndGraft(ResultPart):
    """A figure of the base by itself, and of the graft with its base."""

    base: float
    graft: float


class RooflineBound(ResultPart):
    """The ratio by counted bytes and operations at this machine's rates. `reached`: the share of
    its own bound that each reaches, bound over measured time."""

    ratio: float
    limit: Literal["bytes", "flops"]
    bytes: BaseAndGraft
    flops: BaseAndGraft
    milliseconds: BaseAndGraft
    reached: BaseAndGraft


class RooflineBounds(ResultPart):
    decode: RooflineBound
    prefill: RooflineBound


class DeferredReading(ResultPart):
    """Decoding where the stream runs once for `every` tokens: the time of so many over the base's,
    the median over blocks of rounds, and its bound."""

    every: int
    ratio: Estimate
    bound: float


class SavedFractions(ResultPart):
    """The paper's saved fraction, `1 - inserted / separate`, of a separate reward model of the
    base's size: time per token, parameters trained and stored, bytes of KV cache."""

    decode_time: Estimate
    prefill_time: Estimate
    trainable: float
    stored: float
    cache: float


class OverheadRow(ResultPart):
    """One insertion beside its base. Ratios are medians over rounds in which base and graft take
    turns; times in milliseconds a step, memory in bytes."""

    name: str
    insertion: dict[str, Any]
    parameter_ratio: float
    base_parameters: int
    trainable: int
    stored_bytes: int
    file_bytes: int | None
    base_bytes: int
    cache_bytes_per_token: BaseAndGraft
    peak_bytes: BaseAndGraft
    decode_ratio: Estimate
    prefill_ratio: Estimate
    decode_ms: BaseAndGraft
    prefill_ms: BaseAndGraft
    bound: RooflineBounds
    logits_equal: int = Field(description="passes whose logits were the base's, bit for bit")
    logits_compared: int
    read_later: DeferredReading | None = None
    saved: SavedFractions | None = None


class MeasuredLine(ResultPart):
    """One contestant of a group. `ratio`: its time over the reference's, the median over rounds;
    `floor`: the least that this ratio could be. Keys of `figures` end in their unit."""

    name: str
    milliseconds: float
    ratio: Estimate | None = None
    floor: float | None = None
    figures: dict[str, float | Estimate] = Field(default_factory=dict)


class MeasuredGroup(ResultPart):
    """Contestants that took turns; `per` says what their milliseconds are for."""

    title: str
    reference: str
    per: str
    notes: list[str] = Field(default_factory=list)
    lines: list[MeasuredLine]


class OverheadResult(ResultFile):
    """A run's outcome. `rows` starts with the insertion that was asked for."""

    schema_version: int = SCHEMA_VERSION
    benchmark: Literal["overhead"] = "overhead"
    settings: OverheadSettings
    machine: str
    rates: MachineRates
    rows: list[OverheadRow]
    groups: list[MeasuredGroup] = Field(default_factory=list)
    provenance: dict[str, Any]


def measured_lines(
    times: Mapping[str, np.ndarray],
    reference: str,
    *,
    floors: Mapping[str, float] | None = None,
    figures: Mapping[str, Mapping[str, float | Estimate]] | None = None,
) -> list[MeasuredLine]:
    """A line for each contestant, by the seconds of its rounds."""
    return [
        MeasuredLine(
            name=name,
            milliseconds=1000 * float(np.median(seconds)),
            ratio=median_ratio(seconds, times[reference], f"{name} over {reference}"),
            floor=(floors or {}).get(name),
            figures=dict((figures or {}).get(name, {})),
        )
        for name, seconds in times.items()
    ]


def median_ratio(tops: np.ndarray, bottoms: np.ndarray, what: str) -> Estimate:
    """The median of the rounds' ratios: what else ran in a round moved both."""
    return estimate(median(tops / bottoms), len(tops), what)
