"""Training steps beside the base's forward: no backward pass goes through it (METHOD, 1)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from otter_cli.benchmarks.overhead.bench import Bench
from otter_cli.benchmarks.overhead.classifier import lora, separate
from otter_cli.benchmarks.overhead.clock import interleaved
from otter_cli.benchmarks.overhead.costs import random_tokens
from otter_cli.benchmarks.overhead.memory import peak_above
from otter_cli.benchmarks.overhead.result import Group, lines_of
from otter_cli.benchmarks.overhead.sizes import sized
from otter_cli.benchmarks.overhead.subject import Subject, insert
from otter_cli.benchmarks.overhead.work import Pass, Work, base_work, inserted_work

if TYPE_CHECKING:
    from torch import Tensor, nn

FORWARD, LORA, FULL = "base's forward", "LoRA r 8 on q, v", "full fine-tuning"
_LEAST_TEXTS = 8
_SHARE = 0.02


@dataclass
class Trained:
    """`score` gives a text's reward, [batch]; gradients reach `parameters` alone."""

    score: Callable[[], Tensor]
    parameters: list[nn.Parameter]

    def __post_init__(self) -> None:
        import torch

        self.optimiser = torch.optim.AdamW(self.parameters, lr=1e-5, fused=True)
        # Gradients stay where they are, so that they do not count as activations.
        for parameter in self.parameters:
            parameter.grad = torch.zeros_like(parameter)

    def gradients(self) -> None:
        """Bradley-Terry on pairs: the first half of the batch is chosen, the second rejected."""
        import torch.nn.functional as F

        self.optimiser.zero_grad(set_to_none=False)
        chosen, rejected = self.score().flatten().chunk(2)
        (-F.logsigmoid(chosen - rejected).mean()).backward()

    def step(self) -> None:
        self.gradients()
        self.optimiser.step()


def training(bench: Bench) -> list[Group]:
    """Step time, tokens a second and activations of insertion, LoRA and full fine-tuning."""
    import torch

    subject, settings = bench.subject, bench.settings
    texts = max(_LEAST_TEXTS, settings.batch + settings.batch % 2)
    tokens = random_tokens(subject, texts, settings.context, "training")
    small = insert(
        subject.name,
        subject.stock,
        sized(subject.shape, subject.parameters, _SHARE, "both"),
    )
    insertions = {
        f"insertion, {100 * one.inserted / subject.parameters:.1f} %": one
        for one in (small, bench.with_signals("reward"))
    }
    trained = {name: _inserted(one, tokens) for name, one in insertions.items()}
    trained[LORA] = _classifier(lora(subject.stock, 8, ["q_proj", "v_proj"]), tokens)
    trained["LoRA r 16 on all linear"] = _classifier(lora(subject.stock, 16, "all-linear"), tokens)
    trained[FULL] = _classifier(separate(subject.stock), tokens)
    decoder: Any = subject.stock.get_submodule(subject.shape.family.decoder)

    def forward() -> None:
        with torch.no_grad():
            decoder(tokens, use_cache=False)

    steps = {FORWARD: forward, **{name: one.step for name, one in trained.items()}}
    times = interleaved(steps, bench.rounds, synchronise=bench.synchronise, warm_up=1)
    peaks = {FORWARD: peak_above(forward, settings.device)} | {
        name: peak_above(one.gradients, settings.device) for name, one in trained.items()
    }
    one = Pass(texts, settings.context, 0, subject.stock.dtype.itemsize)
    floors = {name: _floor(bench, insertion, one) for name, insertion in insertions.items()}
    figures = {
        name: {
            "tokens a second": tokens.numel() / float(np.median(seconds)),
            "speed over LoRA's": float(np.median(times[LORA] / seconds)),
            "above the weights, bytes": float(peaks[name]),
            "trained": float(sum(p.numel() for p in trained[name].parameters))
            if name in trained
            else 0.0,
        }
        for name, seconds in times.items()
    }
    lines = lines_of(times, FORWARD, floors=floors, figures=figures)
    notes = [
        f"{texts} texts of {settings.context} tokens, Bradley-Terry on their last, AdamW.",
        "The forward is the decoder's alone; a step has its backward and its update.",
        "Floor: the operations of the forward, and of the insertion's forward and backward.",
        "Above the weights: the peak of forward and backward, gradients of weights apart.",
    ]
    return [Group(title="Training", reference=FORWARD, per="step", notes=notes, lines=lines)]


def _inserted(subject: Subject, tokens: Tensor) -> Trained:
    graft = subject.graft

    def score() -> Tensor:
        out = graft(tokens, signals=(), logits=False, use_cache=False)
        last = {name: state[:, -1:] for name, state in out.inserted_state.items()}
        return graft.read_signal("reward", out.base_state[:, -1:], last)

    return Trained(score, [parameter for _, parameter in graft.inserted_parameters()])


def _classifier(model: Any, tokens: Tensor) -> Trained:
    def score() -> Tensor:
        states = model.base_model(tokens, use_cache=False).last_hidden_state
        reward: Tensor = model.score(states[:, -1])
        return reward

    return Trained(score, _wanted(model.train().parameters()))


def _wanted(parameters: Iterable[nn.Parameter]) -> list[nn.Parameter]:
    return [parameter for parameter in parameters if parameter.requires_grad]


def _floor(bench: Bench, inserted: Subject, one: Pass) -> float:
    """Over the forward without its output head, which a reward does not need."""
    shape, plan = bench.subject.shape, inserted.plans[0]
    head = shape.vocab * shape.hidden
    base = base_work(shape, bench.subject.layer_weights, one)
    base = Work(base.flops - 2 * head * one.batch, base.bytes - one.itemsize * head)
    forward = inserted_work(plan, one)
    # Backward: every weight's gradient, and through W^z alone that of what it was given.
    through = sum(slot.count for slot in plan.slots if slot.name.endswith(".z.weight"))
    backward = Work(forward.flops + 2 * through * one.rows, forward.bytes)
    rates = bench.rates
    return rates.seconds(base + forward + backward) / rates.seconds(base)
