"""A matrix as YAML: axes whose values change how a graft is made, trained or benchmarked."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, NonNegativeInt, ValidationError

from otter_cli.benchmarks.results import BenchmarkName
from otter_cli.core.errors import OtterError
from otter_cli.core.strict_config import StrictConfig, config_error
from otter_cli.core.strict_files import read_yaml
from otter_cli.data.tables import expand_variables
from otter_cli.training.recipe import BaselineName


class CellChange(StrictConfig):
    """What a value of an axis sets: options of `graft`, keys of the training recipe, options of the
    benchmark."""

    graft: dict[str, Any] = Field(default_factory=dict)
    train: dict[str, Any] = Field(default_factory=dict)
    bench: dict[str, Any] = Field(default_factory=dict)

    def merged_over(self, other: CellChange) -> CellChange:
        """Both changes. Where both set a key, this one's value holds."""
        return CellChange(
            graft=other.graft | self.graft,
            train=other.train | self.train,
            bench=other.bench | self.bench,
        )

    def with_values(self, bench: dict[str, Any], train: dict[str, Any]) -> CellChange:
        """The same, with these values for the keys that it sets itself."""
        return CellChange(
            graft=self.graft,
            train=self.train | {key: train[key] for key in self.train.keys() & train.keys()},
            bench=self.bench | {key: bench[key] for key in self.bench.keys() & bench.keys()},
        )


class ExtraGraft(StrictConfig):
    """A further graft of the base, trained at each seed by its own recipe, or by `signals` of it.
    With `baseline`, that baseline is trained instead of the insertion."""

    recipe: str
    signals: tuple[str, ...] | None = None
    baseline: BaselineName | None = None
    graft: dict[str, Any] = Field(default_factory=dict)
    train: dict[str, Any] = Field(default_factory=dict)


class MatrixRecipe(StrictConfig):
    """With `base` and `recipe`, each cell trains a graft and the controls in `baselines`, which are
    the benchmark's task head and reward model. Without them, the benchmark's own `folder` is
    measured. Without `benchmark`, the figures are those of the held-out rows.

    Options of the benchmark name what is trained as `{head}`, `{separate}`, or `{NAME}` of a graft
    in `beside`."""

    base: Path | None = None
    recipe: str | None = None
    data: Path | None = None
    baselines: tuple[Literal["head", "separate"], ...] = ()
    beside: dict[str, ExtraGraft] = Field(default_factory=dict)
    benchmark: BenchmarkName | None = None
    seeds: tuple[NonNegativeInt, ...] = Field(default=(0,), min_length=1)
    metrics: tuple[str, ...] = Field(min_length=1)
    common: CellChange = CellChange()
    axes: dict[str, dict[str, CellChange]] = Field(default_factory=dict)

    @property
    def trains(self) -> bool:
        return self.base is not None

    def limited_to(self, limit: int) -> MatrixRecipe:
        """The same with `limit` prompts and training steps, at its first seed: does it run?"""
        bench = {"limit": limit} if self.benchmark else {}
        train = {"steps": limit, "evaluate_every": 0} if self.trains else {}
        beside = {
            name: extra.model_copy(update={"train": extra.train | train})
            for name, extra in self.beside.items()
        }
        axes = {
            axis: {value: change.with_values(bench, train) for value, change in values.items()}
            for axis, values in self.axes.items()
        }
        common = CellChange(train=train, bench=bench).merged_over(self.common)
        update = {"common": common, "beside": beside, "axes": axes, "seeds": self.seeds[:1]}
        return self.model_copy(update=update)


@dataclass(frozen=True)
class MatrixCell:
    """One combination: its value on each axis, and everything that it sets."""

    values: dict[str, str]
    change: CellChange

    @property
    def name(self) -> str:
        return cell_name(self.values)


def cell_name(values: Mapping[str, str]) -> str:
    """`part attention, size large`."""
    return ", ".join(f"{axis} {value}" for axis, value in values.items()) or "all"


def matrix_cells(recipe: MatrixRecipe) -> Iterator[MatrixCell]:
    """Every combination. Where two axes set a key, the later axis holds."""
    for combination in product(*(values.items() for values in recipe.axes.values())):
        change = recipe.common
        for _, of_value in combination:
            change = of_value.merged_over(change)
        names = (value for value, _ in combination)
        yield MatrixCell(dict(zip(recipe.axes, names, strict=True)), change)


def load_matrix(path: Path) -> MatrixRecipe:
    """Reads a recipe; `$NAME` is an environment variable. Raises OtterError with the place of what
    is wrong."""
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


def _expand_variables(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _expand_variables(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_expand_variables(inner) for inner in value]
    return expand_variables(value) if isinstance(value, str) else value
