"""A recipe: everything that decides how a graft or a baseline is trained, as YAML.

Unknown keys are refused with the place and the nearest right key. Reading a recipe needs no
torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    PrivateAttr,
    ValidationError,
)

from otter_cli.core.digests import sha256_json
from otter_cli.core.errors import OtterError
from otter_cli.core.strict_config import StrictConfig, config_error
from otter_cli.core.strict_files import parse_yaml, read_small_text_file
from otter_cli.training.objectives import AnyObjective

BaselineName = Literal[
    "head",
    "probe",
    "mha-probe",
    "reward-channel",
    "branch",
    "lora",
    "lora-probe",
    "small",
    "separate",
    "wide",
    "language-model",
]
BASELINE_NAMES: tuple[str, ...] = get_args(BaselineName)


class BaselineSettings(StrictConfig):
    """What differs from the insertion's training. Data, steps and batches are the same."""

    learning_rate: PositiveFloat | None = None


class ProbeSettings(BaselineSettings):
    """`reads`: the states after each layer, or the attention outputs and FFN activations."""

    reads: Literal["states", "branches"] = "states"


class MhaProbeSettings(BaselineSettings):
    """`width`: the numbers of all heads together, 16 for each head."""

    width: int = Field(default=256, ge=16, multiple_of=16)


class RewardChannelSettings(BaselineSettings):
    """`width` of the channel; by default it has as many parameters as the graft. `norm`: over the
    state and the channel together, as published, or of each by itself."""

    width: PositiveInt | None = None
    norm: Literal["joint", "separate"] = "joint"


class LoraSettings(BaselineSettings):
    """`rank` of the update of every linear layer."""

    rank: PositiveInt = 8


class LoraProbeSettings(LoraSettings):
    """`kl`: the weight of the KL to the base's next-token distribution, nats a token."""

    kl: NonNegativeFloat = 0.1


class SmallSettings(BaselineSettings):
    """`layers`: the number of the base's first layers that the small model starts from."""

    layers: PositiveInt = 2


class WideSettings(BaselineSettings):
    """`width` of each head. By default the heads have as many parameters as the graft."""

    width: PositiveInt | None = None


class AllBaselineSettings(StrictConfig):
    """docs/method.md, "Comparators", says what each baseline trains."""

    head: BaselineSettings = BaselineSettings()
    probe: ProbeSettings = ProbeSettings()
    mha_probe: MhaProbeSettings = MhaProbeSettings()
    reward_channel: RewardChannelSettings = RewardChannelSettings()
    branch: BaselineSettings = BaselineSettings()
    lora: LoraSettings = LoraSettings()
    lora_probe: LoraProbeSettings = LoraProbeSettings()
    small: SmallSettings = SmallSettings()
    separate: BaselineSettings = BaselineSettings()
    wide: WideSettings = WideSettings()
    language_model: LoraSettings = LoraSettings()


def check_early_stopping(recipe: Recipe) -> None:
    """Raises OtterError where `best` or `patience` lacks another key that it needs."""
    if recipe.best is None:
        if recipe.patience is not None:
            raise OtterError(
                "patience is set without best",
                hint="name the metric that decides: best: SIGNAL/METRIC",
            )
        return
    signal = recipe.best.partition("/")[0]
    if signal not in recipe.signals:
        raise OtterError(
            f"best: {recipe.best!r} names no signal that is trained",
            hint=f"SIGNAL/METRIC, of {', '.join(recipe.signals)}",
        )
    if recipe.signals[signal].validation is None:
        raise OtterError(
            f"best: signals.{signal} has no validation rows to choose by",
            hint="validation: 0.05 sets some training rows aside; chosen by test rows, the figures "
            "would be too good",
        )
    if not recipe.evaluate_every:
        raise OtterError("best without evaluate_every", hint="for example evaluate_every: 50")


class Recipe(StrictConfig):
    """Each step takes `batch_size` pairs, texts or blocks of every signal, over all processes
    together. `accumulate` divides them into that many passes, which saves memory.

    Lengths are in tokens. `clip` bounds the norm of the whole gradient.
    """

    steps: PositiveInt
    signals: dict[str, AnyObjective] = Field(min_length=1)
    seed: NonNegativeInt = 0
    batch_size: PositiveInt = 32
    accumulate: PositiveInt = 1
    max_length: int = Field(default=512, ge=8)
    allow_truncation: float = Field(default=0.05, ge=0, le=1)
    # How the frozen base's weights are held in memory. The file keeps its own weights, and signals
    # are read beside these later.
    quantize: Literal["int8", "nf4"] | None = None
    optimizer: Literal["adamw", "muon"] = "adamw"
    learning_rate: PositiveFloat = 1e-3
    schedule: Literal["constant", "linear", "cosine"] = "cosine"
    warmup: NonNegativeInt = 10
    weight_decay: NonNegativeFloat = 0.01
    clip: PositiveFloat = 1.0
    # 0: at the end alone.
    evaluate_every: NonNegativeInt = 0
    save_every: PositiveInt = 50
    # SIGNAL/METRIC: the parameters of the best evaluation by this metric are kept. Training stops
    # after `patience` evaluations without a better one.
    best: str | None = None
    patience: PositiveInt | None = None
    baselines: AllBaselineSettings = AllBaselineSettings()
    # Where data files are looked for first. It is no part of the recipe itself.
    _data_folder: Path | None = PrivateAttr(default=None)

    @property
    def data_folder(self) -> Path | None:
        return self._data_folder

    def sha256(self) -> str:
        return sha256_json(self.model_dump(mode="json"))

    def only(self, names: Sequence[str] | None) -> Recipe:
        """The recipe with some of its signals alone; None: all. Raises OtterError."""
        for name in names or ():
            if name not in self.signals:
                raise OtterError(
                    f"the recipe has no signal {name!r}", hint=f"it has {', '.join(self.signals)}"
                )
        signals = {n: o for n, o in self.signals.items() if names is None or n in names}
        return self.model_copy(update={"signals": signals})

    def for_baseline(self, baseline: BaselineName | None) -> Recipe:
        """The recipe with the settings that it has for a baseline."""
        settings = (
            getattr(self.baselines, baseline.replace("-", "_")) if baseline else BaselineSettings()
        )
        rate = settings.learning_rate or self.learning_rate
        return self.model_copy(update={"learning_rate": rate})


def load_recipe(
    path: str | Path, overrides: Sequence[str] = (), *, data: Path | None = None
) -> Recipe:
    """Reads a recipe. `overrides` such as `steps=50` or `signals.reward.train.limit=100` replace
    values of the file. Data files are looked for in `data`, by default beside the recipe.

    Raises OtterError with the place of the fault.
    """
    values = _parse_mapping(read_small_text_file(path), str(path))
    recipe = recipe_from_values(values, overrides, str(path))
    recipe._data_folder = data or Path(path).parent
    return recipe


def recipe_from_values(values: dict[str, Any], overrides: Sequence[str], source: str) -> Recipe:
    """The recipe in `values`, after the overrides, which are written into `values`. Raises
    OtterError with `source` and the place of the fault."""
    for override in overrides:
        _apply_override(values, override)
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        raise config_error(error, source, values) from None


def _parse_mapping(text: str, source: str) -> dict[str, Any]:
    values = parse_yaml(text, source, hint="`otter recipes show` has examples")
    if not isinstance(values, dict):
        raise OtterError(
            f"{source}: a recipe is a mapping, such as `steps: 250`",
            hint="`otter recipes show` has examples",
        )
    return values


def _apply_override(values: dict[str, Any], override: str) -> None:
    keys, equals, written = override.partition("=")
    *outer, last = keys.split(".")
    if not equals or not last:
        raise OtterError(f"--set {override!r} is no KEY=VALUE", hint="for example --set steps=50")
    for key in outer:
        inner = values.setdefault(key, {})
        if not isinstance(inner, dict):
            raise OtterError(
                f"--set {override!r}: {key!r} holds {inner!r}, no keys", hint="check the path"
            )
        values = inner
    values[last] = parse_yaml(written, f"--set {override}", hint="for example --set steps=50")
