"""What a recipe says of the baselines: the names that `--baseline` takes, and their settings."""

from __future__ import annotations

from typing import Literal, get_args

from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt

from otter_cli.training.section import Section

Baseline = Literal[
    "head",
    "probe",
    "branch",
    "lora",
    "lora-probe",
    "small",
    "separate",
    "wide",
    "language-model",
]
BASELINES: tuple[str, ...] = get_args(Baseline)


class BaselineSettings(Section):
    """What a baseline does otherwise than the insertion; data, steps and batches are equal."""

    learning_rate: PositiveFloat | None = None


class ProbeSettings(BaselineSettings):
    """`reads`: the states after each layer, or attention outputs and FFN activations within."""

    reads: Literal["states", "branches"] = "states"


class LoraSettings(BaselineSettings):
    """`rank` of every linear layer's update."""

    rank: PositiveInt = 8


class LoraProbeSettings(LoraSettings):
    """`kl`: the weight of the KL to the base's own next tokens, nats a token."""

    kl: NonNegativeFloat = 0.1


class SmallSettings(BaselineSettings):
    """`layers` of the base that the small model begins as, from the first."""

    layers: PositiveInt = 2


class WideSettings(BaselineSettings):
    """`width` of each head; by default as many parameters in all as the graft has."""

    width: PositiveInt | None = None


class Baselines(Section):
    """`head`: heads on the frozen final state; `probe`: gated linear over all layers; `branch`: a
    copy of the last layer, trained, on the frozen others; `lora`: low-rank updates of a copy;
    `lora_probe`: of the generator itself, whose text drifts;
    `small`: a copy of the first layers; `separate`: a full copy of the base with a head; `wide`:
    wide heads for future tokens, or a wider cell; `language_model`: the base with low-rank
    updates, whose logits are action values."""

    head: BaselineSettings = BaselineSettings()
    probe: ProbeSettings = ProbeSettings()
    branch: BaselineSettings = BaselineSettings()
    lora: LoraSettings = LoraSettings()
    lora_probe: LoraProbeSettings = LoraProbeSettings()
    small: SmallSettings = SmallSettings()
    separate: BaselineSettings = BaselineSettings()
    wide: WideSettings = WideSettings()
    language_model: LoraSettings = LoraSettings()
