"""A matrix as YAML: axes whose values change how a graft is made, trained or benchmarked."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, NonNegativeInt, ValidationError

from otter_cli.core.errors import OtterError
from otter_cli.core.strict_config import StrictConfig, config_error
from otter_cli.core.strict_files import read_yaml
from otter_cli.data.tables import expand_variables
from otter_cli.training.recipe import BaselineName

MatrixBenchmark = Literal["preference", "detox", "detection", "speedup"]


class CellChange(StrictConfig):
    """What a value of an axis sets: options of `graft`, KEY: VALUE of the training recipe, options
    of the bench."""

    graft: dict[str, Any] = Field(default_factory=dict)
    train: dict[str, Any] = Field(default_factory=dict)
    bench: dict[str, Any] = Field(default_factory=dict)

    def over(self, other: CellChange) -> CellChange:
        return CellChange(
            graft={**other.graft, **self.graft},
            train={**other.train, **self.train},
            bench={**other.bench, **self.bench},
        )

    def cut(self, bench: dict[str, Any], train: dict[str, Any]) -> CellChange:
        """With these values for what it sets itself."""
        return CellChange(
            graft=self.graft,
            train=self.train | {key: train[key] for key in self.train.keys() & train.keys()},
            bench=self.bench | {key: bench[key] for key in self.bench.keys() & bench.keys()},
        )


class ExtraGraft(StrictConfig):
    """Another graft of the base, trained at each seed by a recipe of its own, or by these `signals`
    of it; with `baseline`, that control of it in its place."""

    recipe: str
    signals: tuple[str, ...] | None = None
    baseline: BaselineName | None = None
    graft: dict[str, Any] = Field(default_factory=dict)
    train: dict[str, Any] = Field(default_factory=dict)


class MatrixRecipe(StrictConfig):
    """`base` and `recipe`: cells train a graft each, and the controls in `baselines`, which the
    bench then gets as its task head and reward model, where it has such. Without them the bench's
    own `folder` is what is measured. Without `benchmark` the figures are those of the held-out
    rows.

    What is trained is named in options of the bench as `{head}`, `{separate}`, and as `{NAME}` of
    a graft in `beside`."""

    base: Path | None = None
    recipe: str | None = None
    data: Path | None = None
    baselines: tuple[Literal["head", "separate"], ...] = ()
    beside: dict[str, ExtraGraft] = Field(default_factory=dict)
    benchmark: MatrixBenchmark | None = None
    seeds: tuple[NonNegativeInt, ...] = Field(default=(0,), min_length=1)
    metrics: tuple[str, ...] = Field(min_length=1)
    common: CellChange = CellChange()
    axes: dict[str, dict[str, CellChange]] = Field(default_factory=dict)

    def tried(self, limit: int) -> MatrixRecipe:
        """The same with so many prompts and steps, at its first seed: does it run?"""
        bench = {"limit": limit} if self.benchmark else {}
        train = {"steps": limit, "evaluate_every": 0} if self.trains else {}
        common = CellChange(train=train, bench=bench).over(self.common)
        beside = {
            name: one.model_copy(update={"train": {**one.train, **train}})
            for name, one in self.beside.items()
        }
        axes = {
            axis: {value: one.cut(bench, train) for value, one in values.items()}
            for axis, values in self.axes.items()
        }
        update = {"common": common, "beside": beside, "axes": axes, "seeds": self.seeds[:1]}
        return self.model_copy(update=update)

    @property
    def trains(self) -> bool:
        return self.base is not None


@dataclass(frozen=True)
class MatrixCell:
    """One setting: its value on each axis, and all that these and the common part set."""

    values: dict[str, str]
    change: CellChange

    @property
    def name(self) -> str:
        return ", ".join(f"{axis} {value}" for axis, value in self.values.items()) or "all"


def matrix_cells(recipe: MatrixRecipe) -> Iterator[MatrixCell]:
    """Every combination; what a later axis sets counts more."""
    for combination in product(*(values.items() for values in recipe.axes.values())):
        change = recipe.common
        for _, one in combination:
            change = one.over(change)
        named = zip(recipe.axes, (value for value, _ in combination), strict=True)
        yield MatrixCell(dict(named), change)


def _expand_variables(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _expand_variables(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_expand_variables(inner) for inner in value]
    return expand_variables(value) if isinstance(value, str) else value


def load_matrix(path: Path) -> MatrixRecipe:
    """Raises OtterError with the place of what is wrong. `$NAME` is read from the environment."""
    hint = "`otter recipes show matrix/ablation` is an example"
    values = _expand_variables(read_yaml(path, hint=hint))
    try:
        recipe = MatrixRecipe.model_validate(values)
    except ValidationError as error:
        raise config_error(error, str(path), values) from None
    if (recipe.base is None) != (recipe.recipe is None):
        raise OtterError(f"{path}: base and recipe go together", hint="cells that train need both")
    if recipe.beside and not recipe.trains:
        raise OtterError(
            f"{path}: beside without base and recipe", hint="grafts beside are of the same base"
        )
    if not recipe.trains and recipe.benchmark is None:
        raise OtterError(
            f"{path}: nothing to do", hint="give `base` and `recipe`, `benchmark`, or all three"
        )
    return recipe
