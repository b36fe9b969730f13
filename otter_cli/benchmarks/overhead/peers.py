"""Other ways to a reward or to drafts beside the text: their time over the base's.

LoRA and separate reward models run a second pass; Medusa-1 heads and prompt lookup draft. Drafts
of random heads are not accepted, so the time of a pass is what carries over: with the acceptance
measured elsewhere, it gives the speed-up."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from otter_cli.benchmarks.overhead import prefill_decode
from otter_cli.benchmarks.overhead.guided_decoding import BareStep, TimedCall, time_in_rounds
from otter_cli.benchmarks.overhead.measured_models import (
    BaseWithGraft,
    OverheadRun,
    graft_in_memory,
    lora_reward_model,
    parse_signals,
    random_reward_model,
)
from otter_cli.benchmarks.overhead.measuring import WARM_UP, TimedGeneration, interleaved
from otter_cli.benchmarks.overhead.prefill_decode import Contestant, random_tokens
from otter_cli.benchmarks.overhead.result import MeasuredGroup, measured_lines
from otter_cli.graft.config import resolve_config
from otter_cli.graft.plan import Plan

if TYPE_CHECKING:
    from torch import Tensor


BASE_ALONE = "base alone"


def peer_groups(bench: OverheadRun) -> list[MeasuredGroup]:
    """Each decodes token by token; a second model has its own pass and its own cache."""
    import torch

    subject, settings = bench.subject, bench.settings
    prompt = random_tokens(subject, settings.batch, settings.context, "prompt")
    tokens = random_tokens(subject, settings.batch, WARM_UP + settings.repeats, "following")

    def step(contestant: Contestant) -> Callable[[], Tensor]:
        return prefill_decode.decode_step(contestant, prompt, tokens)

    stock = prefill_decode.base_contestant(subject.stock)
    grafts = {
        "insertion, reward": bench.with_signals("reward"),
        "insertion, its keys and values the base's": _with_sizes(bench, kv="base"),
        "insertion, 3 future tokens": bench.with_signals("future:3,plain"),
        "insertion, 3 future tokens by a cell": bench.with_signals("future:3"),
        "Medusa-1 heads, 3 future tokens": _with_sizes(
            bench, hidden=0, signals=parse_signals(["future:3,plain"])
        ),
    }
    seconds: dict[str, Any] = {
        "LoRA reward model, second pass": lora_reward_model(subject.stock, 8, ["q_proj", "v_proj"]),
        "separate reward model": random_reward_model(subject.stock),
    }
    with torch.no_grad():
        steps = {BASE_ALONE: step(stock)}
        steps |= {
            name: step(prefill_decode.graft_contestant(one.graft)) for name, one in grafts.items()
        }
        for name, model in seconds.items():
            steps[name] = _both_steps(
                step(stock), step(prefill_decode.reward_model_contestant(model))
            )
        times = interleaved(steps, settings.repeats, synchronise=bench.synchronise)
    figures = {name: {"added parameters": float(one.inserted)} for name, one in grafts.items()}
    for name, model in seconds.items():
        # LoRA's base is the generator's own.
        own = [n.numel() for key, n in model.named_parameters() if "LoRA" not in name or
               "lora_" in key or "score" in key]  # fmt: skip
        figures[name] = {"added parameters": float(sum(own))}
    floors = {
        name: 1 + float(figures[name]["added parameters"]) / subject.parameters
        for name in (*grafts, "separate reward model")
    }
    notes = [
        "Floor: one, and the parameters added over the base's, all of them read once.",
        "A cell's guesses follow one another: each has a product over the vocabulary to itself.",
    ]
    lines = measured_lines(times, BASE_ALONE, figures=figures, floors=floors)
    return [
        MeasuredGroup(title="Peers", reference=BASE_ALONE, per="token", notes=notes, lines=lines)
    ]


def _both_steps(one: Callable[[], Tensor], other: Callable[[], Tensor]) -> Callable[[], Tensor]:
    def step() -> Tensor:
        one()
        return other()

    return step


def _with_sizes(bench: OverheadRun, **sizes: Any) -> BaseWithGraft:
    shape, config = bench.subject.shape, bench.subject.plans[0].config
    asked: dict[str, Any] = {"hidden": config.hidden, "heads": config.heads, "ffn": config.ffn,
             "signals": parse_signals(["reward"])}  # fmt: skip
    return graft_in_memory(
        bench.subject.name,
        bench.subject.stock,
        Plan(resolve_config(shape, **(asked | sizes)), shape),
    )


PLAIN_DRAFTING = "plain"
_DRAFT_LENGTH = 3
_NEW_TOKENS = 16


def speculative_groups(bench: OverheadRun) -> list[MeasuredGroup]:
    """A pass of each drafter over plain decoding's."""
    from otter_cli.decoding.generate import generate
    from otter_cli.decoding.sampling import Sampling
    from otter_cli.decoding.speculative.drafters import FutureDrafter, PromptLookup

    subject, batch = bench.subject, bench.settings.batch
    prompts = random_tokens(subject, batch, bench.settings.context, "drafting").tolist()
    future = bench.with_signals(f"future:{_DRAFT_LENGTH}").graft
    heads = resolve_config(
        subject.shape, hidden=0, signals=parse_signals([f"future:{_DRAFT_LENGTH},plain"])
    )
    medusa = graft_in_memory(subject.name, subject.stock, Plan(heads, subject.shape)).graft
    sampling = Sampling(_NEW_TOKENS, ignore_eos=True)

    def call(model: Any, drafter: Any = None) -> TimedCall:
        def timed() -> TimedGeneration:
            (first, *_) = generate(model, prompts, sampling, drafter=drafter)
            # The prefill is a pass of its own, and not in the seconds.
            return TimedGeneration(
                first.counters.seconds / max(1, first.counters.base_passes - 1), first
            )

        return timed

    calls = {
        PLAIN_DRAFTING: call(future),
        f"insertion's {_DRAFT_LENGTH} future tokens": call(future, FutureDrafter("future")),
        f"Medusa-1's {_DRAFT_LENGTH} heads": call(medusa, FutureDrafter("future")),
        "prompt lookup of 3": call(future, PromptLookup(length=_DRAFT_LENGTH)),
    }
    times, steps, last = time_in_rounds(
        bench, calls, (BareStep(1), BareStep(1 + _DRAFT_LENGTH)), batch
    )
    one, many = steps.values()
    least = float(np.median(1 + (many - one) / times[PLAIN_DRAFTING]))
    figures = {name: {"cache, bytes": float(one.counters.cache_bytes)} for name, one in
               last.items()}  # fmt: skip
    lines = measured_lines(
        times,
        PLAIN_DRAFTING,
        floors={name: least for name in calls if name != PLAIN_DRAFTING},
        figures=figures,
    )
    note = (
        "The ratio is also the number of tokens a pass must give to pay. Floor: a step of "
        f"{1 + _DRAFT_LENGTH} tokens of the base in place of one."
    )
    return [
        MeasuredGroup(
            title="Speculative", reference=PLAIN_DRAFTING, per="pass", notes=[note], lines=lines
        )
    ]
