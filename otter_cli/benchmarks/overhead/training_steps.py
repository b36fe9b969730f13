"""Training steps of insertion, LoRA and full fine-tuning, beside the base's forward.

No backward pass goes through the base, so an insertion's step can cost little more than the
forward. The floor counts the operations that remain."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from otter_cli.benchmarks.overhead.measured_models import (
    BaseWithGraft,
    OverheadRun,
    graft_in_memory,
    lora_reward_model,
    plan_of_share,
    random_reward_model,
)
from otter_cli.benchmarks.overhead.measuring import (
    CountedWork,
    PassShape,
    base_work,
    inserted_work,
    interleaved,
    peak_above,
)
from otter_cli.benchmarks.overhead.prefill_decode import random_tokens
from otter_cli.benchmarks.overhead.result import MeasuredGroup, MeasuredLine, measured_lines
from otter_cli.core.process import keep_freed_memory

if TYPE_CHECKING:
    from torch import Tensor, nn

    from otter_cli.graft.tensors import InsertedTensor


BASE_FORWARD, LORA, FULL_FINE_TUNING = "base's forward", "LoRA r 8 on q, v", "full fine-tuning"
_LEAST_TEXTS = 8
_SMALL_SHARE = 0.02


@dataclass
class TrainingContestant:
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


@dataclass(frozen=True)
class TrainingTimes:
    """One contestant: seconds of the base's forward and of its steps, in turns; peak bytes of both
    above the weights; and how many numbers it trains."""

    forward: np.ndarray
    step: np.ndarray
    forward_peak: int
    peak: int
    trained: int


def training_groups(bench: OverheadRun) -> list[MeasuredGroup]:
    """Step time, tokens a second and activations of insertion, LoRA and full fine-tuning."""
    subject, settings = bench.subject, bench.settings
    texts = max(_LEAST_TEXTS, settings.batch + settings.batch % 2)
    tokens = random_tokens(subject, texts, settings.context, "training")
    insertions = {
        f"insertion, {100 * one.inserted / subject.parameters:.1f} %": one
        for one in (_small_insertion(subject), bench.with_signals("reward"))
    }
    contestants: dict[str, Callable[[], TrainingContestant]] = {
        name: partial(_insertion_contestant, one, tokens) for name, one in insertions.items()
    }
    classifiers: dict[str, Callable[[], Any]] = {
        LORA: partial(lora_reward_model, subject.stock, 8, ["q_proj", "v_proj"]),
        "LoRA r 16 on all linear": partial(lora_reward_model, subject.stock, 16, "all-linear"),
        FULL_FINE_TUNING: partial(random_reward_model, subject.stock),
    }
    contestants |= {
        n: partial(_classifier_contestant, make, tokens) for n, make in classifiers.items()
    }
    measured = {name: _measure_alone(bench, make, tokens) for name, make in contestants.items()}
    step = PassShape(texts, settings.context, 0, subject.stock.dtype.itemsize)
    floors = {name: _step_floor(bench, one, step) for name, one in insertions.items()}
    whole = [f"{_step_floor(bench, one, step, whole=True):.3f}" for one in insertions.values()]
    notes = [
        f"{texts} texts of {settings.context} tokens, Bradley-Terry on their last, AdamW.",
        "Each trains alone, as `otter train` does, in turns with the base's forward.",
        "The forward is the decoder's alone; a step has its backward and its update.",
        "Beside an insertion the base's last layer ends at the tokens that are scored.",
        "Floor: the operations of the forward, and of the insertion's forward and backward,",
        f"less what the last layer leaves out; with that layer whole {' and '.join(whole)}.",
        "Above the weights: the peak of forward and backward, gradients of weights apart.",
    ]
    lines = _lines(measured, floors, tokens.numel())
    return [
        MeasuredGroup(
            title="Training", reference=BASE_FORWARD, per="step", notes=notes, lines=lines
        )
    ]


def _small_insertion(subject: BaseWithGraft) -> BaseWithGraft:
    plan = plan_of_share(subject.shape, subject.parameters, _SMALL_SHARE, "both")
    return graft_in_memory(subject.name, subject.stock, plan)


def _measure_alone(
    bench: OverheadRun, make: Callable[[], TrainingContestant], tokens: Tensor
) -> TrainingTimes:
    """No other contestant's memory is there, nor what freeing it taught the C library."""
    import torch

    subject, device = bench.subject, bench.settings.device
    decoder: Any = subject.stock.get_submodule(subject.shape.family.decoder)

    def forward() -> None:
        with torch.no_grad():
            decoder(tokens, use_cache=False)

    with keep_freed_memory():
        one = make()
        steps = {BASE_FORWARD: forward, "step": one.step}
        times = interleaved(steps, bench.rounds, synchronise=bench.synchronise)
        return TrainingTimes(
            forward=times[BASE_FORWARD],
            step=times["step"],
            forward_peak=peak_above(forward, device),
            peak=peak_above(one.gradients, device),
            trained=sum(parameter.numel() for parameter in one.parameters),
        )


def _lines(
    measured: dict[str, TrainingTimes], floors: dict[str, float], tokens: int
) -> list[MeasuredLine]:
    """The forward's, and each contestant's over the forward beside it."""
    first = next(iter(measured.values()))
    of_lora = float(np.median(measured[LORA].step / measured[LORA].forward))

    def line(
        name: str, forward: np.ndarray, step: np.ndarray, peak: int, trained: int
    ) -> MeasuredLine:
        figures = {
            "tokens a second": tokens / float(np.median(step)),
            "speed over LoRA's": of_lora / float(np.median(step / forward)),
            "above the weights, bytes": float(peak),
            "trained": float(trained),
        }
        times = {BASE_FORWARD: forward, name: step}
        return measured_lines(times, BASE_FORWARD, floors=floors, figures={name: figures})[-1]

    lines = [line(BASE_FORWARD, first.forward, first.forward, first.forward_peak, 0)]
    return lines + [
        line(name, one.forward, one.step, one.peak, one.trained) for name, one in measured.items()
    ]


def _insertion_contestant(subject: BaseWithGraft, tokens: Tensor) -> TrainingContestant:
    import torch

    graft, (texts, columns) = subject.graft, tokens.shape
    last = torch.arange(texts, device=tokens.device), tokens.new_full((texts,), columns - 1)

    def score() -> Tensor:
        out = graft(tokens, signals=("reward",), logits=False, use_cache=False, at=last)
        return out.signals["reward"]

    return TrainingContestant(score, [parameter for _, parameter in graft.inserted_parameters()])


def _classifier_contestant(make: Callable[[], Any], tokens: Tensor) -> TrainingContestant:
    model = make()

    def score() -> Tensor:
        states = model.base_model(tokens, use_cache=False).last_hidden_state
        reward: Tensor = model.score(states[:, -1])
        return reward

    return TrainingContestant(score, _trainable(model.train().parameters()))


def _trainable(parameters: Iterable[nn.Parameter]) -> list[nn.Parameter]:
    return [parameter for parameter in parameters if parameter.requires_grad]


def _step_floor(
    bench: OverheadRun, inserted: BaseWithGraft, one: PassShape, *, whole: bool = False
) -> float:
    """Over the forward without its output head, which a reward does not need. `whole`: with the
    base's last layer at all positions, as METHOD counts, and not at the last ones alone."""
    shape, plan = bench.subject.shape, inserted.plans[0]
    head = shape.vocab * shape.hidden
    base = base_work(shape, bench.subject.layer_weights, one)
    base = CountedWork(base.flops - 2 * head * one.batch, base.bytes - one.itemsize * head)
    forward = inserted_work(plan, one)
    # Backward: every weight's gradient, and through W^z alone that of what it was given.
    backward = CountedWork(
        forward.flops + 2 * _stream_input_weights(plan.slots) * one.rows, forward.bytes
    )
    left_out = CountedWork(0 if whole else -skipped_operations(inserted, one), 0)
    rates = bench.rates
    return rates.seconds(base + forward + backward + left_out) / rates.seconds(base)


def skipped_operations(inserted: BaseWithGraft, one: PassShape) -> int:
    """Operations at positions that are not scored, of what ends at the scored ones: modules of the
    base's last layer, and what is inserted beside them."""
    base = sum(
        p.numel() for part in inserted.graft.taps.ending for p in part.parameters() if p.ndim > 1
    )
    last = f".layers.{inserted.shape.layers - 1}."
    mine = [
        slot
        for slot in inserted.plans[0].slots
        if slot.role in ("matrix", "output")
        and (last + "attention.out" in slot.name or last + "ffn" in slot.name)
    ]
    forward = base + sum(slot.count for slot in mine)
    backward = sum(slot.count for slot in mine) + _stream_input_weights(mine)
    return 2 * (forward + backward) * (one.rows - one.batch)


def _stream_input_weights(slots: Sequence[InsertedTensor]) -> int:
    """Elements of W^z."""
    return sum(slot.count for slot in slots if slot.name.endswith(".z.weight"))
