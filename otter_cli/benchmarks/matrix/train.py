"""A cell's grafts: made, trained, and found again by what made them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from otter_cli.benchmarks.matrix.recipe import Beside, Change, MatrixRecipe
from otter_cli.checkpoint.folder import Checkpoint
from otter_cli.checkpoint.strict_json import read_own_object
from otter_cli.core.atomic import write_json
from otter_cli.core.console import say
from otter_cli.core.digests import sha256_file, sha256_json
from otter_cli.families import base_shape
from otter_cli.insertion import Plan, graft, parse_layers, resolve
from otter_cli.insertion.config import InsertionConfig
from otter_cli.signals import parse_signal
from otter_cli.training import Recipe, load_recipe, train

DONE = "trained.json"

FindRecipe = Callable[[str], Path]


@dataclass(frozen=True)
class Trained:
    """A graft of a cell and seed with its controls, and grafts beside it; `figures` of its
    held-out rows, by name."""

    folder: Path
    controls: Mapping[str, Path]
    beside: Mapping[str, Path]
    figures: dict[str, dict[str, float]]
    parameters: int


def train_cell(
    asked: MatrixRecipe, change: Change, seed: int, find: FindRecipe, out: Path, device: str
) -> Trained:
    """Trains what is not there yet, below `out` under its key; an unfinished training goes on."""
    assert asked.base is not None and asked.recipe is not None
    own = Beside(recipe=asked.recipe, graft=change.graft, train=change.train)
    place, recipe = _place(asked, own, seed, find, out)
    folder = place / "graft"
    figures = {"insertion": _trained(folder, recipe, folder, None, device)}
    controls: dict[str, Path] = {}
    for baseline in asked.baselines:
        controls[baseline] = place / baseline
        figures[baseline] = _trained(folder, recipe, controls[baseline], baseline, device)
    beside: dict[str, Path] = {}
    for name, one in asked.beside.items():
        place, recipe = _place(asked, one, seed, find, out)
        beside[name] = place / (one.baseline or "graft")
        figures[name] = _trained(place / "graft", recipe, beside[name], one.baseline, device)
    return Trained(
        folder,
        controls,
        beside,
        {name: found["figures"] for name, found in figures.items()},
        figures["insertion"]["parameters"],
    )


def _place(
    asked: MatrixRecipe, one: Beside, seed: int, find: FindRecipe, out: Path
) -> tuple[Path, Recipe]:
    """The folder of a graft, which is made there, by what decides it; and how it is trained."""
    assert asked.base is not None
    base = Checkpoint.open(asked.base)
    overrides = [f"{key}={json.dumps(value)}" for key, value in {**one.train, "seed": seed}.items()]
    loaded = load_recipe(find(one.recipe), overrides, data=asked.data).only(one.signals)
    config = _config(base, one.graft, seed)
    key = sha256_json(
        [config.model_dump(mode="json"), loaded.sha256(), _digests(base), asked.baselines]
    )
    place = out / key[:10]
    place.mkdir(parents=True, exist_ok=True)
    if not (place / "graft").exists():
        plan = Plan(config, base_shape(base.config))
        graft(base, place / "graft", plan, source=str(asked.base))
    return place, loaded


def _trained(
    folder: Path, recipe: Recipe, target: Path, baseline: Any, device: str
) -> dict[str, Any]:
    done = target / "training" / DONE
    if done.exists():
        found: dict[str, Any] = read_own_object(done)
        return found
    say(f"training {target}")
    to = None if baseline is None else target
    result = train(folder, recipe, baseline=baseline, to=to, resume=True, device=device)
    found = {
        "figures": {
            f"{signal} {what}" if len(result.signals) > 1 else what: value.mean
            for signal, metrics in result.signals.items()
            for what, value in metrics.items()
        },
        "parameters": result.trained_parameters,
    }
    write_json(done, found)
    return found


def _config(base: Checkpoint, options: Mapping[str, Any], seed: int) -> InsertionConfig:
    shape = base_shape(base.config)
    given = {"seed": seed, **options}
    signals = given.pop("signal", ["reward"])
    texts = [signals] if isinstance(signals, str) else signals
    if "layers" in given:
        given["layers"] = parse_layers(str(given["layers"]), shape.layers)
    return resolve(shape, signals=tuple(map(parse_signal, texts)), **given)


def _digests(base: Checkpoint) -> Any:
    return {p.name: sha256_file(p) for p in sorted(base.path.glob("*.safetensors"))}
