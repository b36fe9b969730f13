"""What else gives a reward, or drafts, beside the text: time of a decoding step over the base's."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from otter_cli.benchmarks.overhead import passes
from otter_cli.benchmarks.overhead.bench import Bench, signals_of
from otter_cli.benchmarks.overhead.classifier import lora, separate
from otter_cli.benchmarks.overhead.clock import WARM_UP, interleaved
from otter_cli.benchmarks.overhead.costs import random_tokens
from otter_cli.benchmarks.overhead.passes import Contestant
from otter_cli.benchmarks.overhead.result import Group, lines_of
from otter_cli.benchmarks.overhead.subject import Subject, insert
from otter_cli.insertion import Plan, resolve

if TYPE_CHECKING:
    from torch import Tensor

BASE = "base alone"


def peers(bench: Bench) -> list[Group]:
    """Each decodes token by token; a second model has its own pass and its own cache."""
    import torch

    subject, settings = bench.subject, bench.settings
    prompt = random_tokens(subject, settings.batch, settings.context, "prompt")
    tokens = random_tokens(subject, settings.batch, WARM_UP + settings.repeats, "following")

    def step(contestant: Contestant) -> Callable[[], Tensor]:
        return passes.decode(contestant, prompt, tokens)

    stock = passes.stock_base(subject.stock)
    grafts = {
        "insertion, reward": bench.with_signals("reward"),
        "insertion, its keys and values the base's": _with(bench, kv="base"),
        "insertion, 3 future tokens": bench.with_signals("future:3,plain"),
        "insertion, 3 future tokens by a cell": bench.with_signals("future:3"),
        "Medusa-1 heads, 3 future tokens": _with(
            bench, hidden=0, signals=signals_of(["future:3,plain"])
        ),
    }
    seconds: dict[str, Any] = {
        "LoRA reward model, second pass": lora(subject.stock, 8, ["q_proj", "v_proj"]),
        "separate reward model": separate(subject.stock),
    }
    with torch.no_grad():
        steps = {BASE: step(stock)}
        steps |= {name: step(passes.grafted(one.graft)) for name, one in grafts.items()}
        for name, model in seconds.items():
            steps[name] = _both(step(stock), step(passes.separate_reward_model(model)))
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
    lines = lines_of(times, BASE, figures=figures, floors=floors)
    return [Group(title="Peers", reference=BASE, per="token", notes=notes, lines=lines)]


def _both(one: Callable[[], Tensor], other: Callable[[], Tensor]) -> Callable[[], Tensor]:
    def step() -> Tensor:
        one()
        return other()

    return step


def _with(bench: Bench, **sizes: Any) -> Subject:
    shape, config = bench.subject.shape, bench.subject.plans[0].config
    asked: dict[str, Any] = {"hidden": config.hidden, "heads": config.heads, "ffn": config.ffn,
             "signals": signals_of(["reward"])}  # fmt: skip
    return insert(
        bench.subject.name, bench.subject.stock, Plan(resolve(shape, **(asked | sizes)), shape)
    )
