"""Prefill and decoding of base and graft in turns: time, memory and parameters as one result row.

A Contestant is anything that takes tokens and a cache. The row has the bound beside each ratio, and
says how often the graft's logits equalled the base's bit for bit."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from otter_cli.benchmarks.metrics.estimates import estimate
from otter_cli.benchmarks.overhead.measuring import (
    ALL_ROUNDS,
    WARM_UP,
    CountedWork,
    Pace,
    PassShape,
    StepTimes,
    interleaved,
    peak_above,
    synchroniser,
)
from otter_cli.benchmarks.overhead.result import (
    BaseAndGraft,
    DeferredReading,
    OverheadRow,
    OverheadSettings,
    RooflineBound,
    RooflineBounds,
    SavedFractions,
    median_ratio,
)
from otter_cli.core.intervals import median
from otter_cli.core.process import derive_seed
from otter_cli.scorers.load import parameter_bytes

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel
    from transformers.cache_utils import Cache

    from otter_cli.benchmarks.overhead.measured_models import BaseWithGraft, OverheadRun
    from otter_cli.model.otter import OtterForCausalLM


@dataclass(frozen=True)
class Contestant:
    """`run(tokens [batch, n], cache)` returns the logits or the score of the last position."""

    run: Callable[[Tensor, Cache], Tensor]
    new_cache: Callable[[], Cache]


def base_contestant(model: PreTrainedModel) -> Contestant:
    """Logits of the last position, [batch, 1, vocab]."""

    def run(tokens: Tensor, cache: Cache) -> Tensor:
        out: Any = model(tokens, past_key_values=cache, use_cache=True, logits_to_keep=1)
        return out.logits

    return Contestant(run, lambda: _new_dynamic_cache(model))


def graft_contestant(model: OtterForCausalLM) -> Contestant:
    """The same logits, while every signal is read at the same position."""

    def run(tokens: Tensor, cache: Cache) -> Tensor:
        out = model(tokens, signals=(), past_key_values=cache, use_cache=True, logits_to_keep=1)
        last = {name: state[:, -1:] for name, state in out.inserted_state.items()}
        for name in model.signal_configs:
            model.read_signal(name, out.base_state[:, -1:], last)
        assert out.logits is not None
        return out.logits

    return Contestant(run, model.new_cache)


def deferred_graft_contestant(model: OtterForCausalLM, every: int) -> Contestant:
    """The same, but the signals of single tokens are read for `every` tokens at once."""
    import torch

    from otter_cli.model.lazy import LazyStream

    prefill, stream = graft_contestant(model), LazyStream(model)
    unread: list[tuple[Tensor, Mapping[str, Tensor]]] = []  # base and inserted states by token

    def run(tokens: Tensor, cache: Cache) -> Tensor:
        if tokens.shape[1] > 1:
            return prefill.run(tokens, cache)
        unread.append(stream.forward(tokens, past_key_values=cache, use_cache=True))
        logits = model.lm_head(unread[-1][0])
        if len(unread) == every:
            base, inserted = zip(*unread, strict=True)
            states = {
                name: torch.cat([state[name] for state in inserted], 1) for name in inserted[0]
            }
            for name in model.signal_configs:
                model.read_signal(name, torch.cat(base, 1), states)
            unread.clear()
        return logits

    return Contestant(run, model.new_cache)


def reward_model_contestant(model: PreTrainedModel) -> Contestant:
    """A reward model with its own weights and cache, which the insertion replaces: [batch, 1]."""

    def run(tokens: Tensor, cache: Cache) -> Tensor:
        out = model.base_model(tokens, past_key_values=cache, use_cache=True)
        return model.score(out.last_hidden_state[:, -1])

    return Contestant(run, lambda: _new_dynamic_cache(model))


def prefill_step(contestant: Contestant, tokens: Tensor) -> Callable[[], Tensor]:
    """A step that runs `tokens` [batch, n] over an empty cache."""
    return lambda: contestant.run(tokens, contestant.new_cache())


def decode_step(contestant: Contestant, prompt: Tensor, tokens: Tensor) -> Callable[[], Tensor]:
    """A step that runs the next column of `tokens` [batch, steps] over a growing cache."""
    cache = contestant.new_cache()
    contestant.run(prompt, cache)
    columns = iter(tokens.split(1, 1))
    return lambda: contestant.run(next(columns), cache)


def repeated_step(contestant: Contestant, prompt: Tensor, tokens: Tensor) -> Callable[[], Tensor]:
    """A step that runs the same `tokens` [batch, n] after the prompt, and removes them again."""
    cache: Any = contestant.new_cache()
    contestant.run(prompt, cache)

    def step() -> Tensor:
        out = contestant.run(tokens, cache)
        cache.crop(-tokens.shape[1])
        return out

    return step


def _new_dynamic_cache(model: PreTrainedModel) -> Cache:
    from transformers import DynamicCache

    return DynamicCache(config=model.config)


PassKind = Literal["decode", "prefill"]
BASE, GRAFT, SEPARATE = "base", "graft", "separate reward model"
GRAFT_DEFERRED = "graft, read later"


@dataclass
class LogitsComparison:
    """How many passes of a graft were compared, and in how many its logits were the base's."""

    equal: int = 0
    compared: int = 0

    def add(self, outputs: Mapping[str, Any]) -> None:
        """Compares the logits of one round, by contestant, bit for bit."""
        import torch

        for name in {GRAFT, GRAFT_DEFERRED} & outputs.keys():
            self.compared += 1
            self.equal += torch.equal(outputs[BASE], outputs[name])


@dataclass(frozen=True)
class PrefillDecodeTimes:
    """Seconds of each contestant by kind of pass, and peak bytes above the weights."""

    times: dict[PassKind, StepTimes]
    peaks: dict[str, int]
    logits: LogitsComparison


def measure_prefill_decode(
    models: BaseWithGraft,
    settings: OverheadSettings,
    separate: PreTrainedModel | None = None,
    pace: Pace = ALL_ROUNDS,
    name: str = "",
) -> PrefillDecodeTimes:
    """Prefill and decoding of base and graft in turns, and of a separate reward model if given."""
    import torch

    from otter_cli.model.lazy import supports_lazy_stream

    contestants = {
        BASE: base_contestant(models.stock),
        GRAFT: graft_contestant(models.graft),
    }
    if separate is not None:
        contestants[SEPARATE] = reward_model_contestant(separate)
    prompt = random_tokens(models, settings.batch, settings.context, "prompt")
    following = random_tokens(models, settings.batch, WARM_UP + settings.repeats, "following")
    logits = LogitsComparison()
    options: dict[str, Any] = {
        "synchronise": synchroniser(settings.device),
        "on_round": logits.add,
    }
    with torch.no_grad():
        # On a CPU with several threads, the first pass of a process may round differently from all
        # later ones. Stock transformers did so in four processes of ten.
        contestants[BASE].run(prompt, contestants[BASE].new_cache())
        prefills = {name: prefill_step(each, prompt) for name, each in contestants.items()}
        # A prefill takes many times as long as a decoding step, so it is repeated less often.
        repeats = max(5, settings.repeats // 10)
        times: dict[PassKind, StepTimes] = {
            "prefill": interleaved(
                prefills, repeats, **options, pace=pace.share(3), label=f"{name}prefill"
            )
        }
        if supports_lazy_stream(models.graft):
            contestants[GRAFT_DEFERRED] = deferred_graft_contestant(
                models.graft, _deferred_tokens(settings)
            )
        steps = {name: decode_step(each, prompt, following) for name, each in contestants.items()}
        times["decode"] = interleaved(
            steps, settings.repeats, **options, pace=pace, label=f"{name}decode"
        )
        peaks = {name: peak_above(prefills[name], settings.device) for name in (BASE, GRAFT)}
    return PrefillDecodeTimes(times, peaks, logits)


def overhead_row(name: str, run: OverheadRun, measured: PrefillDecodeTimes) -> OverheadRow:
    """The figures of one insertion, with bounds at the run's rates (docs/method.md, Costs)."""
    models = run.models
    plan, shape, size = models.plans[0], models.shape, models.stock.dtype.itemsize
    base_cache = 2 * shape.layers * shape.kv_heads * shape.head_dim * size
    own_cache = sum(plan.cache_bytes_per_token(size) for plan in models.plans)
    base_bytes = parameter_bytes(models.stock.parameters())
    graft_bytes = base_bytes + parameter_bytes(p for _, p in models.graft.inserted_parameters())
    decode, prefill = measured.times["decode"], measured.times["prefill"]
    return OverheadRow(
        name=name,
        insertion=plan.config.model_dump(mode="json", exclude={"signals", "layers"})
        | {"layers": len(plan.config.layers), "signals": list(models.graft.signal_configs)},
        parameter_ratio=models.inserted / models.parameters,
        base_parameters=models.parameters,
        trainable=models.inserted,
        stored_bytes=sum(plan.stored_bytes for plan in models.plans),
        file_bytes=models.file_bytes,
        base_bytes=base_bytes,
        cache_bytes_per_token=BaseAndGraft(base=base_cache, graft=base_cache + own_cache),
        peak_bytes=BaseAndGraft(
            base=base_bytes + measured.peaks[BASE], graft=graft_bytes + measured.peaks[GRAFT]
        ),
        decode_ratio=median_ratio(decode[GRAFT], decode[BASE], "decode ratio"),
        prefill_ratio=median_ratio(prefill[GRAFT], prefill[BASE], "prefill ratio"),
        decode_ms=_milliseconds(decode),
        prefill_ms=_milliseconds(prefill),
        bound=RooflineBounds(
            decode=_bound(run, _decode_shape(run, decode), decode),
            prefill=_bound(
                run, PassShape(run.settings.batch, run.settings.context, 0, size), prefill
            ),
        ),
        logits_equal=measured.logits.equal,
        logits_compared=measured.logits.compared,
        read_later=_deferred_reading(run, decode),
        saved=_saved_fractions(models, measured, own_cache / base_cache),
    )


def random_tokens(models: BaseWithGraft, rows: int, columns: int, what: str) -> Tensor:
    import torch

    generator = torch.Generator().manual_seed(derive_seed("overhead", what))
    tokens = torch.randint(models.shape.vocab, (rows, columns), generator=generator)
    return tokens.to(models.stock.device)


def _bound(run: OverheadRun, step: PassShape, times: StepTimes) -> RooflineBound:
    base = run.models.base_work(step)
    graft = base + run.models.inserted_work(step)
    base_least, graft_least = run.rates.seconds(base), run.rates.seconds(graft)
    return RooflineBound(
        ratio=graft_least / base_least,
        limit=run.rates.limit(base),
        bytes=BaseAndGraft(base=base.bytes, graft=graft.bytes),
        flops=BaseAndGraft(base=base.flops, graft=graft.flops),
        milliseconds=BaseAndGraft(base=1000 * base_least, graft=1000 * graft_least),
        reached=BaseAndGraft(
            base=base_least / float(np.median(times[BASE])),
            graft=graft_least / float(np.median(times[GRAFT])),
        ),
    )


def _decode_shape(run: OverheadRun, times: StepTimes, tokens: int = 1) -> PassShape:
    """A decoding step at the cache's middle length, which represents the whole growth."""
    settings = run.settings
    middle = settings.context + WARM_UP + len(times[BASE]) // 2
    return PassShape(settings.batch, tokens, middle, run.models.stock.dtype.itemsize)


def _deferred_tokens(settings: OverheadSettings) -> int:
    from otter_cli.decoding.request_checks import READ_EVERY

    return min(READ_EVERY, settings.repeats)


def _deferred_reading(run: OverheadRun, times: StepTimes) -> DeferredReading | None:
    every = _deferred_tokens(run.settings)
    # Of any `every` rounds in a row, exactly one runs the stream.
    blocks = len(times[BASE]) // every
    if GRAFT_DEFERRED not in times or not blocks:
        return None
    graft_seconds, base_seconds = (
        times[name][: blocks * every].reshape(blocks, every).sum(1)
        for name in (GRAFT_DEFERRED, BASE)
    )
    step = run.models.base_work(_decode_shape(run, times))
    base = CountedWork(every * step.flops, every * step.bytes)
    graft = base + run.models.inserted_work(_decode_shape(run, times, every))
    return DeferredReading(
        every=every,
        ratio=median_ratio(graft_seconds, base_seconds, "decode ratio, read later"),
        bound=run.rates.seconds(graft) / run.rates.seconds(base),
    )


def _milliseconds(times: StepTimes) -> BaseAndGraft:
    return BaseAndGraft(
        base=1000 * float(np.median(times[BASE])), graft=1000 * float(np.median(times[GRAFT]))
    )


def _saved_fractions(
    models: BaseWithGraft, measured: PrefillDecodeTimes, cache: float
) -> SavedFractions | None:
    if SEPARATE not in measured.times["decode"]:
        return None
    saved_time = {}
    for kind, times in measured.times.items():
        # The baseline runs base and reward model, so what it adds is the reward model's time.
        shares = 1 - (times[GRAFT] - times[BASE]) / times[SEPARATE]
        saved_time[kind] = estimate(median(shares), len(shares), f"{kind} time saved")
    # A reward model has a score head in place of the output head.
    shape = models.shape
    head = 0 if shape.tied else shape.vocab * shape.hidden
    separate = models.parameters - head + shape.hidden
    return SavedFractions(
        decode_time=saved_time["decode"],
        prefill_time=saved_time["prefill"],
        trainable=1 - models.inserted / separate,
        stored=1 - models.inserted / separate,
        cache=1 - cache,
    )
