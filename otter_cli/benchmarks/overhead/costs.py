"""The row of one insertion: time, memory and parameters beside its base's."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from otter_cli.benchmarks.estimates import estimate
from otter_cli.benchmarks.models import bytes_of
from otter_cli.benchmarks.overhead import passes
from otter_cli.benchmarks.overhead.clock import WARM_UP, Times, interleaved, synchroniser
from otter_cli.benchmarks.overhead.machine import Rates
from otter_cli.benchmarks.overhead.memory import peak_above
from otter_cli.benchmarks.overhead.result import (
    Bound,
    Bounds,
    Pair,
    ReadLater,
    Row,
    Saved,
    Settings,
    median_ratio,
)
from otter_cli.benchmarks.overhead.work import Pass, Work, base_work, inserted_work
from otter_cli.core.intervals import median
from otter_cli.core.seeds import derive_seed

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from otter_cli.benchmarks.overhead.subject import Subject

Kind = Literal["decode", "prefill"]
BASE, GRAFT, SEPARATE = "base", "graft", "separate reward model"
LATER = "graft, read later"


@dataclass
class Compared:
    """How often a round's logits were the base's, to the last bit."""

    equal: int = 0
    of: int = 0

    def see(self, outputs: Mapping[str, Any]) -> None:
        import torch

        for name in {GRAFT, LATER} & outputs.keys():
            self.of += 1
            self.equal += torch.equal(outputs[BASE], outputs[name])


@dataclass(frozen=True)
class Measured:
    """Seconds of each contestant by kind of pass, and the peak of memory above the weights."""

    times: dict[Kind, Times]
    peaks: dict[str, int]
    compared: Compared = field(default_factory=Compared)


def measure(
    subject: Subject, settings: Settings, separate: PreTrainedModel | None = None
) -> Measured:
    """Prefill and decode of base and graft in turns, and of a separate reward model with them."""
    import torch

    from otter_cli.model import may_defer

    contestants = {
        BASE: passes.stock_base(subject.stock),
        GRAFT: passes.grafted(subject.graft),
    }
    if separate is not None:
        contestants[SEPARATE] = passes.separate_reward_model(separate)
    prompt = random_tokens(subject, settings.batch, settings.context, "prompt")
    following = random_tokens(subject, settings.batch, WARM_UP + settings.repeats, "following")
    compared = Compared()
    how: dict[str, Any] = {
        "synchronise": synchroniser(settings.device),
        "seen": compared.see,
    }
    with torch.no_grad():
        # A process's first pass by several threads may round otherwise than all that follow: stock
        # transformers on a CPU, in four processes of ten.
        contestants[BASE].run(prompt, contestants[BASE].new_cache())
        prefills = {name: passes.prefill(one, prompt) for name, one in contestants.items()}
        # A prefill is many times a step: a few of them take as long.
        few = max(5, settings.repeats // 10)
        times: dict[Kind, Times] = {"prefill": interleaved(prefills, few, **how)}
        if may_defer(subject.graft):
            contestants[LATER] = passes.grafted_later(subject.graft, _every(settings))
        steps = {name: passes.decode(one, prompt, following) for name, one in contestants.items()}
        times["decode"] = interleaved(steps, settings.repeats, **how)
        peaks = {name: peak_above(prefills[name], settings.device) for name in (BASE, GRAFT)}
    return Measured(times, peaks, compared)


def row(name: str, subject: Subject, settings: Settings, measured: Measured, rates: Rates) -> Row:
    """The figures of one measured insertion, with their bounds at `rates`."""
    (plan,) = subject.plans[:1]
    size = subject.stock.dtype.itemsize
    shape = subject.shape
    base_cache = 2 * shape.layers * shape.kv_heads * shape.head_dim * size
    own_cache = sum(plan.cache_bytes_per_token(size) for plan in subject.plans)
    base_bytes = bytes_of(subject.stock.parameters())
    inserted_bytes = bytes_of(p for _, p in subject.graft.inserted_parameters())
    ratios = {
        kind: median_ratio(times[GRAFT], times[BASE], f"{kind} ratio")
        for kind, times in measured.times.items()
    }
    return Row(
        name=name,
        insertion=plan.config.model_dump(mode="json", exclude={"signals", "layers"})
        | {"layers": len(plan.config.layers), "signals": list(subject.graft.signal_configs)},
        parameter_ratio=subject.inserted / subject.parameters,
        base_parameters=subject.parameters,
        trainable=subject.inserted,
        stored_bytes=sum(plan.stored_bytes for plan in subject.plans),
        file_bytes=subject.file_bytes,
        base_bytes=base_bytes,
        cache_bytes_per_token=Pair(base=base_cache, graft=base_cache + own_cache),
        peak_bytes=Pair(
            base=base_bytes + measured.peaks[BASE],
            graft=base_bytes + inserted_bytes + measured.peaks[GRAFT],
        ),
        decode_ratio=ratios["decode"],
        prefill_ratio=ratios["prefill"],
        decode_ms=_milliseconds(measured.times["decode"]),
        prefill_ms=_milliseconds(measured.times["prefill"]),
        bound=Bounds(
            decode=_bound(subject, settings, measured, "decode", rates),
            prefill=_bound(subject, settings, measured, "prefill", rates),
        ),
        logits_equal=measured.compared.equal,
        logits_compared=measured.compared.of,
        read_later=_read_later(subject, settings, measured.times["decode"], rates),
        saved=_saved(subject, measured, own_cache / base_cache),
    )


def random_tokens(subject: Subject, rows: int, columns: int, what: str) -> Tensor:
    import torch

    generator = torch.Generator().manual_seed(derive_seed("overhead", what))
    tokens = torch.randint(subject.shape.vocab, (rows, columns), generator=generator)
    return tokens.to(subject.stock.device)


def _bound(
    subject: Subject, settings: Settings, measured: Measured, kind: Kind, rates: Rates
) -> Bound:
    prefill = Pass(settings.batch, settings.context, 0, subject.stock.dtype.itemsize)
    one = prefill if kind == "prefill" else _step(subject, settings)
    base = base_work(subject.shape, subject.layer_weights, one)
    graft = sum((inserted_work(plan, one) for plan in subject.plans), base)
    least = {BASE: rates.seconds(base), GRAFT: rates.seconds(graft)}
    taken = {name: float(np.median(measured.times[kind][name])) for name in least}
    return Bound(
        ratio=least[GRAFT] / least[BASE],
        limit=rates.limit(base),  # type: ignore[arg-type]
        bytes=_pair(lambda work: work.bytes, base, graft),
        flops=_pair(lambda work: work.flops, base, graft),
        milliseconds=Pair(base=1000 * least[BASE], graft=1000 * least[GRAFT]),
        reached=Pair(base=least[BASE] / taken[BASE], graft=least[GRAFT] / taken[GRAFT]),
    )


def _step(subject: Subject, settings: Settings, tokens: int = 1) -> Pass:
    """The cache grows while decoding: the middle of it stands for all."""
    middle = settings.context + WARM_UP + settings.repeats // 2
    return Pass(settings.batch, tokens, middle, subject.stock.dtype.itemsize)


def _every(settings: Settings) -> int:
    from otter_cli.decoding.requests import READ_EVERY

    return min(READ_EVERY, settings.repeats)


def _read_later(
    subject: Subject, settings: Settings, times: Times, rates: Rates
) -> ReadLater | None:
    if LATER not in times:
        return None
    every = _every(settings)
    # Whichever the first of them, one of so many rounds in a row has the stream's run.
    blocks = settings.repeats // every
    spent = {n: times[n][: blocks * every].reshape(blocks, every).sum(1) for n in (BASE, LATER)}
    one = base_work(subject.shape, subject.layer_weights, _step(subject, settings))
    base = Work(every * one.flops, every * one.bytes)
    many = _step(subject, settings, every)
    whole = sum((inserted_work(plan, many) for plan in subject.plans), base)
    return ReadLater(
        every=every,
        ratio=median_ratio(spent[LATER], spent[BASE], "decode ratio, read later"),
        bound=rates.seconds(whole) / rates.seconds(base),
    )


def _pair(of: Callable[[Work], float], base: Work, graft: Work) -> Pair:
    return Pair(base=of(base), graft=of(graft))


def _milliseconds(times: Times) -> Pair:
    return Pair(
        base=1000 * float(np.median(times[BASE])), graft=1000 * float(np.median(times[GRAFT]))
    )


def _saved(subject: Subject, measured: Measured, cache: float) -> Saved | None:
    if SEPARATE not in measured.times["decode"]:
        return None
    found = {}
    for kind, times in measured.times.items():
        # METHOD, 5: 1 - (t_otter - t_base) / (t_baseline - t_base), the baseline running both.
        shares = 1 - (times[GRAFT] - times[BASE]) / times[SEPARATE]
        found[kind] = estimate(median(shares), len(shares), f"{kind} time saved")
    # It has the base's weights without the output head, and a score of its own.
    shape = subject.shape
    head = 0 if shape.tied else shape.vocab * shape.hidden
    separate = subject.parameters - head + shape.hidden
    return Saved(
        decode_time=found["decode"],
        prefill_time=found["prefill"],
        trainable=1 - subject.inserted / separate,
        stored=1 - subject.inserted / separate,
        cache=1 - cache,
    )
