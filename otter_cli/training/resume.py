"""Going on with a run: only with the recipe and the data that it began with."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from otter_cli.core.atomic import write_text
from otter_cli.core.errors import OtterError
from otter_cli.core.jsonlines import read_jsonlines
from otter_cli.core.small_files import OWN_BYTES, read_small_text
from otter_cli.training.material import IGNORED
from otter_cli.training.recipe import Recipe
from otter_cli.training.state import StateFolder

# What may change between a run and its resumption: it moves no parameter.
_FREE = {"save_every", "allow_truncation", "baselines"}


def identity_of(recipe: Recipe, data: Mapping[str, Any]) -> dict[str, Any]:
    """What two runs must share to end in the same bits."""
    return {"recipe": _settings(recipe), "data": _deciding(data)}


def _settings(recipe: Recipe) -> dict[str, Any]:
    # Unless an evaluation chooses the step that is kept.
    free = _FREE if recipe.best else {*_FREE, "evaluate_every"}
    return recipe.model_dump(mode="json", exclude=free)


def _deciding(data: Mapping[str, Any]) -> dict[str, Any]:
    """The record of the data without what moves no parameter: columns that nothing reads."""
    return {
        key: _deciding(value) if isinstance(value, Mapping) else value
        for key, value in data.items()
        if key != IGNORED
    }


def _completed(identity: Mapping[str, Any]) -> dict[str, Any]:
    """An identity whose recipe may be older than some keys: they had the values that they have when
    they are left out."""
    try:
        return {**identity, "recipe": _settings(Recipe.model_validate(identity["recipe"]))}
    except ValidationError:
        return dict(identity)


def refuse_unfinished(states: StateFolder) -> None:
    """A run that stopped is not begun again by oversight."""
    notes = states.notes()
    if notes is None:
        return
    with states.being_read():
        done, steps = notes["step"], notes["identity"]["recipe"]["steps"]
        finished = notes["done"]
    if not finished:
        raise OtterError(
            f"{states.path} holds an unfinished run, at step {done} of {steps}",
            hint="--resume goes on with it; --restart drops it and trains the tensors as they are",
        )


def check_same_run(states: StateFolder, identity: Mapping[str, Any]) -> None:
    """A run is resumed with the recipe and the data that it began with, or not at all."""
    notes = states.notes()
    if notes is None:
        return
    with states.being_read():
        before, now = _flat(_completed(notes["identity"])), _flat(identity)
    differing = sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key))
    if differing:
        key = differing[0]
        raise OtterError(
            f"the run to resume had {key} = {before.get(key)!r}, not {now.get(key)!r}",
            hint="resume with the same recipe and data, or --restart",
        )


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def forget_after(path: Path, step: int) -> None:
    """Drops what a killed run logged after the state that it now goes on from."""
    if path.exists():
        lines = read_small_text(path, limit=OWN_BYTES).splitlines(keepends=True)
        kept = [
            line
            for line, record in zip(lines, read_jsonlines(path), strict=False)
            if record["step"] <= step
        ]
        write_text(path, "".join(kept))
