"""Training steps of insertion, LoRA and full fine-tuning, beside the base's forward.

No backward pass goes through the base, so an insertion's step can cost little more than the
forward. The floor counts the operations of such a step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
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
    interleaved,
    peak_above,
)
from otter_cli.benchmarks.overhead.prefill_decode import random_tokens
from otter_cli.benchmarks.overhead.result import MeasuredGroup, measured_group
from otter_cli.core.process import keep_freed_memory

if TYPE_CHECKING:
    from torch import Tensor, nn

    from otter_cli.graft.plan import InsertedTensor


BASE_FORWARD, LORA, FULL_FINE_TUNING = "base's forward", "LoRA r 8 on q, v", "full fine-tuning"
_LEAST_TEXTS = 8
_SMALL_SHARE = 0.02


@dataclass
class TrainingContestant:
    """`score` returns the rewards of the texts, [batch]. Only `parameters` have gradients."""

    score: Callable[[], Tensor]
    parameters: list[nn.Parameter]

    def __post_init__(self) -> None:
        import torch

        self.optimiser = torch.optim.AdamW(self.parameters, lr=1e-5, fused=True)
        # Gradients are allocated once, so that they do not count as activations.
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
    """Of one contestant: seconds of the base's forward and of its own steps, [rounds]; peak bytes
    of both above the weights; and the number of trained parameters."""

    forward: np.ndarray
    step: np.ndarray
    forward_peak: int
    peak: int
    trained: int


def training_groups(run: OverheadRun) -> list[MeasuredGroup]:
    """Step time, tokens a second and activations of insertion, LoRA and full fine-tuning."""
    models, settings = run.models, run.settings
    texts = max(_LEAST_TEXTS, settings.batch + settings.batch % 2)
    tokens = random_tokens(models, texts, settings.context, "training")
    small_plan = plan_of_share(models.shape, models.parameters, _SMALL_SHARE, "both")
    small = graft_in_memory(models.name, models.stock, small_plan)
    insertions = {
        f"insertion, {100 * each.inserted / models.parameters:.1f} %": each
        for each in (small, run.with_signals("reward"))
    }
    reward_models: dict[str, Callable[[], Any]] = {
        LORA: partial(lora_reward_model, models.stock, 8, ["q_proj", "v_proj"]),
        "LoRA r 16 on all linear": partial(lora_reward_model, models.stock, 16, "all-linear"),
        FULL_FINE_TUNING: partial(random_reward_model, models.stock),
    }
    contestants: dict[str, Callable[[], TrainingContestant]] = {
        **{n: partial(_insertion_contestant, m, tokens) for n, m in insertions.items()},
        **{n: partial(_reward_model_contestant, m, tokens) for n, m in reward_models.items()},
    }
    measured = {}
    for number, (name, make) in enumerate(contestants.items()):
        part = replace(run, pace=run.pace.share(len(contestants) - number))
        try:
            measured[name] = _measure_alone(part, make, tokens, f"training, {name}")
        except KeyboardInterrupt:
            if not measured:
                raise
            break
    step = PassShape(texts, settings.context, 0, models.stock.dtype.itemsize)
    floors = {name: _step_floor(run, each, step) for name, each in insertions.items()}
    whole = [f"{_step_floor(run, each, step, whole=True):.3f}" for each in insertions.values()]
    notes = [
        f"{texts} texts of {settings.context} tokens, Bradley-Terry on their last token, AdamW.",
        "Each trains alone, as `otter train` does, in turns with the base's forward.",
        "The forward is the decoder's alone. A step includes its backward and its update.",
        "In an insertion's step, the base's last layer ends at the tokens that are scored.",
        "Floor: the operations of the forward, and of the insertion's forward and backward,",
        f"without those that the last layer skips; with that layer whole {' and '.join(whole)}.",
        "Above the weights: the peak of forward and backward, without gradients of weights.",
    ]
    return [_training_group(measured, floors, tokens.numel(), notes)]


def _measure_alone(
    run: OverheadRun, make: Callable[[], TrainingContestant], tokens: Tensor, label: str
) -> TrainingTimes:
    """Measured while no other contestant has memory allocated."""
    import torch

    models, device = run.models, run.settings.device
    decoder: Any = models.stock.get_submodule(models.shape.family.decoder)

    def forward() -> None:
        with torch.no_grad():
            decoder(tokens, use_cache=False)

    with keep_freed_memory():
        contestant = make()
        steps = {BASE_FORWARD: forward, "step": contestant.step}
        times = interleaved(
            steps, run.rounds, synchronise=run.synchronise, pace=run.pace, label=label
        )
        return TrainingTimes(
            forward=times[BASE_FORWARD],
            step=times["step"],
            forward_peak=peak_above(forward, device),
            peak=peak_above(contestant.gradients, device),
            trained=sum(parameter.numel() for parameter in contestant.parameters),
        )


def _training_group(
    measured: dict[str, TrainingTimes], floors: dict[str, float], tokens: int, notes: list[str]
) -> MeasuredGroup:
    """A line for the forward, and one for each contestant over the forward measured beside it."""
    first = next(iter(measured.values()))
    peak = first.forward_peak
    forward = TrainingTimes(first.forward, first.forward, peak, peak, trained=0)
    lora = measured.get(LORA)  # not there where Ctrl-C came first
    lines = []
    for name, times in {BASE_FORWARD: forward, **measured}.items():
        figures = {
            "tokens a second": tokens / float(np.median(times.step)),
            **_speed_over(lora, times),
            "above the weights, bytes": float(times.peak),
            "trained": float(times.trained),
        }
        group = measured_group(
            "Training",
            {BASE_FORWARD: times.forward, name: times.step},
            reference=BASE_FORWARD,
            per="step",
            notes=notes,
            floors=floors,
            figures={name: figures},
        )
        lines.append(group.lines[-1])
    return group.model_copy(update={"lines": lines})


def _speed_over(lora: TrainingTimes | None, times: TrainingTimes) -> dict[str, float]:
    if lora is None:
        return {}
    ratio = float(np.median(lora.step / lora.forward))
    return {"speed over LoRA's": ratio / float(np.median(times.step / times.forward))}


def _insertion_contestant(models: BaseWithGraft, tokens: Tensor) -> TrainingContestant:
    import torch

    graft, (texts, columns) = models.graft, tokens.shape
    last = torch.arange(texts, device=tokens.device), tokens.new_full((texts,), columns - 1)

    def score() -> Tensor:
        out = graft(tokens, signals=("reward",), logits=False, use_cache=False, at=last)
        return out.signals["reward"]

    return TrainingContestant(score, [parameter for _, parameter in graft.inserted_parameters()])


def _reward_model_contestant(make: Callable[[], Any], tokens: Tensor) -> TrainingContestant:
    model = make()

    def score() -> Tensor:
        states = model.base_model(tokens, use_cache=False).last_hidden_state
        reward: Tensor = model.score(states[:, -1])
        return reward

    return TrainingContestant(score, [p for p in model.train().parameters() if p.requires_grad])


def _step_floor(
    run: OverheadRun, models: BaseWithGraft, step: PassShape, *, whole: bool = False
) -> float:
    """The least time of a step over the forward without its output head, which a reward does not
    need (docs/method.md, Costs). `whole`: with the base's last layer at all positions, not only at
    the scored ones."""
    head = models.shape.vocab * models.shape.hidden
    base = models.base_work(step)
    base = CountedWork(base.flops - 2 * head * step.batch, base.bytes - step.itemsize * head)
    forward = models.inserted_work(step)
    # The gradient of every weight, and the gradient of the input through W^z alone.
    through = 2 * _stream_input_weights(models.plans[0].tensors) * step.rows
    backward = CountedWork(forward.flops + through, forward.bytes)
    skipped = CountedWork(0 if whole else -skipped_operations(models, step), 0)
    return run.rates.seconds(base + forward + backward + skipped) / run.rates.seconds(base)


def skipped_operations(models: BaseWithGraft, step: PassShape) -> int:
    """Operations at positions that are not scored, of the modules that run at scored ones only:
    the end of the base's last layer, and the insertion beside it."""
    base = sum(
        p.numel()
        for part in models.graft.capture.selective_modules
        for p in part.parameters()
        if p.ndim > 1
    )
    last = f".layers.{models.shape.layers - 1}."
    inserted = [
        tensor
        for tensor in models.plans[0].tensors
        if tensor.role in ("matrix", "output")
        and (last + "attention.out" in tensor.name or last + "ffn" in tensor.name)
    ]
    forward = base + sum(tensor.count for tensor in inserted)
    backward = sum(tensor.count for tensor in inserted) + _stream_input_weights(inserted)
    return 2 * (forward + backward) * (step.rows - step.batch)


def _stream_input_weights(tensors: Sequence[InsertedTensor]) -> int:
    """Elements of W^z."""
    return sum(tensor.count for tensor in tensors if tensor.name.endswith(".z.weight"))
