"""Other ways to read a reward or to draft tokens during decoding: their time over the base's.

LoRA and separate reward models run a second pass. Medusa-1 heads and prompt lookup draft tokens.
Drafts of random heads are not accepted, so the result is the time of a pass: with an acceptance
measured elsewhere, it gives the speed-up."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

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
from otter_cli.benchmarks.overhead.prefill_decode import (
    Contestant,
    base_contestant,
    decode_step,
    graft_contestant,
    random_tokens,
    reward_model_contestant,
)
from otter_cli.benchmarks.overhead.result import MeasuredGroup, measured_group
from otter_cli.graft.config import resolve_config
from otter_cli.graft.plan import Plan

if TYPE_CHECKING:
    from torch import Tensor


BASE_ALONE = "base alone"
_LORA, _SEPARATE = "LoRA reward model, second pass", "separate reward model"


def peer_groups(run: OverheadRun) -> list[MeasuredGroup]:
    """Each decodes token by token. A second model has a pass and a cache of its own."""
    import torch

    models, settings = run.models, run.settings
    prompt = random_tokens(models, settings.batch, settings.context, "prompt")
    tokens = random_tokens(models, settings.batch, WARM_UP + settings.repeats, "following")
    config = models.plans[0].config
    own_sizes = {"hidden": config.hidden, "heads": config.heads, "ffn": config.ffn}
    grafts = {
        "insertion, reward": run.with_signals("reward"),
        "insertion, its keys and values the base's": _graft(run, "reward", kv="base", **own_sizes),
        "insertion, 3 future tokens": run.with_signals("future:3,plain"),
        "insertion, 3 future tokens by a cell": run.with_signals("future:3"),
        "Medusa-1 heads, 3 future tokens": _graft(
            run, "future:3,plain", **own_sizes | {"hidden": 0}
        ),
    }
    reward_models: dict[str, Any] = {
        _LORA: lora_reward_model(models.stock, 8, ["q_proj", "v_proj"]),
        _SEPARATE: random_reward_model(models.stock),
    }

    def step(contestant: Contestant) -> Callable[[], Tensor]:
        return decode_step(contestant, prompt, tokens)

    def both_steps(model: Any) -> Callable[[], Tensor]:
        base, reward = step(base_contestant(models.stock)), step(reward_model_contestant(model))

        def step_of_both() -> Tensor:
            base()
            return reward()

        return step_of_both

    with torch.no_grad():
        steps = {BASE_ALONE: step(base_contestant(models.stock))}
        steps |= {name: step(graft_contestant(each.graft)) for name, each in grafts.items()}
        steps |= {name: both_steps(model) for name, model in reward_models.items()}
        times = interleaved(
            steps, settings.repeats, synchronise=run.synchronise, pace=run.pace, label="peers"
        )
    added = {name: each.inserted for name, each in grafts.items()}
    for name, model in reward_models.items():
        # LoRA's base is the generator itself: only its adapters and its score are added.
        added[name] = sum(
            parameter.numel()
            for key, parameter in model.named_parameters()
            if name != _LORA or "lora_" in key or "score" in key
        )
    notes = [
        "Floor: one, plus the added parameters over the base's, each of them read once.",
        "A cell predicts its tokens one after another: each has a product over the vocabulary.",
    ]
    return [
        measured_group(
            "Peers",
            times,
            reference=BASE_ALONE,
            per="token",
            notes=notes,
            floors={
                name: 1 + count / models.parameters
                for name, count in added.items()
                if name != _LORA
            },
            figures={name: {"added parameters": float(count)} for name, count in added.items()},
        )
    ]


def _graft(run: OverheadRun, signal: str, **sizes: Any) -> BaseWithGraft:
    models = run.models
    config = resolve_config(models.shape, signals=parse_signals([signal]), **sizes)
    return graft_in_memory(models.name, models.stock, Plan(config, models.shape))


PLAIN_DRAFTING = "plain"
_DRAFT_LENGTH = 3
_NEW_TOKENS = 16


def speculative_groups(run: OverheadRun) -> list[MeasuredGroup]:
    """A pass with each drafter over plain decoding's."""
    from otter_cli.decoding.generate import generate
    from otter_cli.decoding.sampling import Sampling
    from otter_cli.decoding.speculative.drafters import FutureDrafter, PromptLookup

    batch = run.settings.batch
    prompts = random_tokens(run.models, batch, run.settings.context, "drafting").tolist()
    future = run.with_signals(f"future:{_DRAFT_LENGTH}").graft
    medusa = _graft(run, f"future:{_DRAFT_LENGTH},plain", hidden=0).graft
    sampling = Sampling(_NEW_TOKENS, ignore_eos=True)

    def call(model: Any, drafter: Any = None) -> TimedCall:
        def timed() -> TimedGeneration:
            first, *_ = generate(model, prompts, sampling, drafter=drafter)
            return TimedGeneration.per_pass(first)

        return timed

    calls = {
        PLAIN_DRAFTING: call(future),
        f"insertion's {_DRAFT_LENGTH} future tokens": call(future, FutureDrafter("future")),
        f"Medusa-1's {_DRAFT_LENGTH} heads": call(medusa, FutureDrafter("future")),
        "prompt lookup of 3": call(future, PromptLookup(length=_DRAFT_LENGTH)),
    }
    one_token, draft = BareStep(1), BareStep(1 + _DRAFT_LENGTH)
    times, steps, generations = time_in_rounds(run, calls, (one_token, draft), batch, "speculative")
    floor = float(np.median(1 + (steps[draft] - steps[one_token]) / times[PLAIN_DRAFTING]))
    note = (
        "The ratio is also the number of tokens that a pass must give to pay for itself. Floor: a "
        f"step of {1 + _DRAFT_LENGTH} tokens of the base in place of one."
    )
    return [
        measured_group(
            "Speculative",
            times,
            reference=PLAIN_DRAFTING,
            per="pass",
            notes=[note],
            floors={name: floor for name in calls if name != PLAIN_DRAFTING},
            figures={
                name: {"cache, bytes": float(generation.counters.cache_bytes)}
                for name, generation in generations.items()
            },
        )
    ]
