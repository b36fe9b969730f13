"""result.json of `otter bench overhead`: rows of figures, each with its lower bound."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from pydantic import Field

from otter_cli.benchmarks.metrics.estimates import Estimate, estimate
from otter_cli.benchmarks.overhead.measuring import MachineRates
from otter_cli.benchmarks.results import ResultFile, ResultPart
from otter_cli.core.formatting import seconds_text
from otter_cli.core.intervals import median

SCHEMA_VERSION = 1


class OverheadSettings(ResultPart):
    """What was measured and how. `context`: tokens of the prefill, and before decoded tokens."""

    subject: str
    dtype: str
    device: str
    threads: int
    batch: int
    context: int
    repeats: int = Field(description="the most rounds; the n of a ratio says how many there were")
    seconds: float | None = Field(None, description="of a phase; None: --repeats was given")
    stream: str = Field(
        "", description="what ran the stream, in which dtype, and why not native code"
    )


class BaseAndGraft(ResultPart):
    """A figure of the base alone, and of the graft, which includes its base."""

    base: float
    graft: float


class RooflineBound(ResultPart):
    """The ratio of the least times for counted bytes and operations, at this machine's rates.
    `reached`: bound over measured time, of base and graft."""

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
    """Decoding with the stream run once for `every` tokens. `ratio`: their time over the base's,
    the median over blocks of rounds."""

    every: int
    ratio: Estimate
    bound: float


class SavedFractions(ResultPart):
    """`1 - inserted / separate`, against a separate reward model of the base's size: time per
    token, parameters trained and stored, bytes of KV cache (docs/method.md, Costs)."""

    decode_time: Estimate
    prefill_time: Estimate
    trainable: float
    stored: float
    cache: float


class OverheadRow(ResultPart):
    """One insertion beside its base. Ratios are medians over rounds in which base and graft take
    turns. Times are in milliseconds per step, memory is in bytes."""

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
    """One contestant of a group. `ratio`: its time over the reference's, the median over rounds.
    `floor`: the least possible ratio. Keys of `figures` end in their unit."""

    name: str
    milliseconds: float
    ratio: Estimate | None = None
    floor: float | None = None
    x: float | None = Field(
        default=None, description="the place of this line on the group's x axis"
    )
    figures: dict[str, float | Estimate] = Field(default_factory=dict)


class MeasuredGroup(ResultPart):
    """Contestants that took turns. `per`: what the milliseconds are for, such as a token. `x_axis`:
    what the lines are counted by, where they are points of curves; shares and ratios are curves."""

    title: str
    reference: str
    per: str
    x_axis: str = ""
    notes: list[str] = Field(default_factory=list)
    lines: list[MeasuredLine]


class OverheadResult(ResultFile):
    """result.json. `rows` starts with the insertion that the options name."""

    schema_version: int = SCHEMA_VERSION
    benchmark: Literal["overhead"] = "overhead"
    settings: OverheadSettings
    machine: str
    rates: MachineRates
    rows: list[OverheadRow]
    groups: list[MeasuredGroup] = Field(default_factory=list)
    left_out: list[str] = Field(default_factory=list, description="phases that Ctrl-C left out")
    provenance: dict[str, Any]


def measured_group(
    title: str,
    times: Mapping[str, np.ndarray],
    *,
    reference: str,
    per: str,
    notes: list[str],
    floors: Mapping[str, float] | None = None,
    figures: Mapping[str, Mapping[str, float | Estimate]] | None = None,
) -> MeasuredGroup:
    """A line for each contestant, from the seconds of its rounds, [rounds]."""
    lines = [
        MeasuredLine(
            name=name,
            milliseconds=1000 * float(np.median(seconds)),
            ratio=median_ratio(seconds, times[reference], f"{name} over {reference}"),
            floor=(floors or {}).get(name),
            figures=dict((figures or {}).get(name, {})),
        )
        for name, seconds in times.items()
    ]
    return MeasuredGroup(title=title, reference=reference, per=per, notes=notes, lines=lines)


def median_ratio(tops: np.ndarray, bottoms: np.ndarray, what: str) -> Estimate:
    """The median of the rounds' ratios. Other load during a round slows both times."""
    return estimate(median(tops / bottoms), len(tops), what)


def rounds_text(settings: OverheadSettings) -> str:
    """How many rounds there are, such as `as many rounds as fit 3 min 00 s, at most 100`."""
    if settings.seconds is None:
        return f"{settings.repeats} rounds"
    fit = seconds_text(settings.seconds)
    return f"as many rounds as fit {fit}, at most {settings.repeats}"
