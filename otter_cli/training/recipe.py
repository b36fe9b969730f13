"""A recipe: everything that decides how a graft is trained, as YAML that a user copies."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

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
from otter_cli.core.small_files import read_small_text
from otter_cli.core.strict_yaml import parse_yaml
from otter_cli.training.controls import Baseline, Baselines, BaselineSettings
from otter_cli.training.objectives import AnyObjective
from otter_cli.training.section import Section, section_error


class Recipe(Section):
    """Each step takes `batch_size` pairs, texts or blocks of every signal, all processes together,
    in `accumulate` passes where memory is short.

    Lengths are in tokens; `clip` bounds the norm of the whole gradient.
    """

    steps: PositiveInt
    signals: dict[str, AnyObjective] = Field(min_length=1)
    seed: NonNegativeInt = 0
    batch_size: PositiveInt = 32
    accumulate: PositiveInt = 1
    max_length: int = Field(default=512, ge=8)
    allow_truncation: float = Field(default=0.05, ge=0, le=1)
    # The frozen base's weights in memory; the folder keeps the file's, and signals trained beside
    # these are read beside those.
    quantize: Literal["int8", "nf4"] | None = None
    optimizer: Literal["adamw", "muon"] = "adamw"
    learning_rate: PositiveFloat = 1e-3
    schedule: Literal["constant", "linear", "cosine"] = "cosine"
    warmup: NonNegativeInt = 10
    weight_decay: NonNegativeFloat = 0.01
    clip: PositiveFloat = 1.0
    # 0: at the end only.
    evaluate_every: NonNegativeInt = 0
    save_every: PositiveInt = 50
    # SIGNAL/METRIC: the parameters of the evaluation that was best by it are kept, and training
    # stops after `patience` evaluations without a better one.
    best: str | None = None
    patience: PositiveInt | None = None
    baselines: Baselines = Baselines()
    # Where its data files are looked for first. No part of what is asked for.
    _data_folder: Path | None = PrivateAttr(default=None)

    @property
    def data_folder(self) -> Path | None:
        return self._data_folder

    def sha256(self) -> str:
        return sha256_json(self.model_dump(mode="json"))

    def only(self, names: Sequence[str] | None) -> Recipe:
        """The same recipe for some of its signals; None is all. Raises OtterError."""
        for name in names or ():
            if name not in self.signals:
                raise OtterError(
                    f"the recipe has no signal {name!r}", hint=f"it has {', '.join(self.signals)}"
                )
        kept = {n: o for n, o in self.signals.items() if names is None or n in names}
        return self.model_copy(update={"signals": kept})

    def for_baseline(self, baseline: Baseline | None) -> Recipe:
        """The same recipe with what it says of a baseline."""
        settings = (
            getattr(self.baselines, baseline.replace("-", "_")) if baseline else BaselineSettings()
        )
        rate = settings.learning_rate or self.learning_rate
        return self.model_copy(update={"learning_rate": rate})


def load_recipe(
    path: str | Path, overrides: Sequence[str] = (), *, data: Path | None = None
) -> Recipe:
    """Reads a recipe; `overrides` such as `steps=50` or `signals.reward.train.limit=100` count
    more than the file. Data files are looked for in `data`, by default beside the recipe.

    Raises OtterError with the place of what is wrong.
    """
    values = _mapping(read_small_text(path), str(path))
    recipe = recipe_from_values(values, overrides, str(path))
    recipe._data_folder = data or Path(path).parent
    return recipe


def recipe_from_values(values: dict[str, Any], overrides: Sequence[str], source: str) -> Recipe:
    """The recipe that `values` hold, after the overrides, which change `values` too. Raises
    OtterError that names `source` and the place of what is wrong."""
    for override in overrides:
        _override(values, override)
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        raise section_error(error, source, values) from None


def _mapping(text: str, source: str) -> dict[str, Any]:
    values = parse_yaml(text, source, hint="`otter recipes show` has examples")
    if not isinstance(values, dict):
        raise OtterError(
            f"{source}: a recipe is a mapping, such as `steps: 250`",
            hint="`otter recipes show` has examples",
        )
    return values


def _override(values: dict[str, Any], override: str) -> None:
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
