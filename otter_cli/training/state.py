"""The state of a run in FOLDER/training/, and what a resumed run must have in common with it.

A state is written whole or not at all; the last two are kept. A run is resumed only with the
recipe and the data that it began with."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from otter_cli.checkpoint.safetensors_reader import read_header
from otter_cli.checkpoint.safetensors_writer import TensorSpec, write_tensors
from otter_cli.core.errors import OtterError
from otter_cli.core.library_errors import translate_library_errors
from otter_cli.core.strict_files import parse_json_object
from otter_cli.training.recipe import Recipe
from otter_cli.training.signal_data import IGNORED_COLUMNS

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.optim import Optimizer

    from otter_cli.training.optimiser import CombinedOptimiser


_STATES_KEPT = 2
_STATE_FILE = re.compile(r"state-(\d{8})\.safetensors")
_BEST_FILE = "best-{}.safetensors"
_DAMAGED_HINT = "the file is damaged, or another version's: --restart drops the run"


@dataclass(frozen=True)
class TrainingState:
    """`step`: steps done. `notes`: JSON of whoever saves it. Random state is not in here, since
    every step seeds itself from its number."""

    step: int
    tensors: dict[str, Tensor]
    notes: dict[str, Any]


class StateFolder:
    """States by step; what the newest says is where a run goes on."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "training"

    def newest(self) -> Path | None:
        return max(self._files(), default=None)

    def notes(self) -> dict[str, Any] | None:
        """Those of the newest state, without its tensors."""
        newest = self.newest()
        return None if newest is None else _read_notes(newest)

    def load(self) -> TrainingState | None:
        newest = self.newest()
        if newest is None:
            return None
        return TrainingState(_step_of(newest), _read_tensors(newest), _read_notes(newest))

    @contextmanager
    def being_read(self, kept: int | None = None) -> Iterator[None]:
        """Around the use of what the newest state holds, or what is kept of a step: what is missing
        there, or of another kind, is a fault of its file."""
        place = (self.newest() or self.path) if kept is None else self.path / _best_file(kept)
        with translate_library_errors(
            place, "the state of the run", library="otter", hint=_DAMAGED_HINT
        ):
            yield

    def save(
        self,
        step: int,
        tensors: Mapping[str, Tensor],
        notes: Mapping[str, Any],
        best: int | None = None,
    ) -> None:
        """`best`: the step whose parameters are kept beside; those of others may go now."""
        self._write(f"state-{step:08d}.safetensors", tensors, notes)
        for old in sorted(self._files())[:-_STATES_KEPT]:
            old.unlink()
        for file in self.path.glob(_BEST_FILE.format("*")):
            if best is None or file.name != _best_file(best):
                file.unlink()

    def keep(self, step: int, tensors: Mapping[str, Tensor]) -> None:
        """The parameters of a step that was the best so far. A state that says so comes after."""
        self._write(_best_file(step), tensors, {})

    def kept(self, step: int) -> dict[str, Tensor]:
        return _read_tensors(self.path / _best_file(step))

    def clear(self) -> None:
        """Oldest first: whenever this is cut short, the newest still stands for the run."""
        for file in sorted(self._files()):
            file.unlink()
        for file in self.path.glob(_BEST_FILE.format("*")):
            file.unlink()

    def _write(self, file: str, tensors: Mapping[str, Tensor], notes: Mapping[str, Any]) -> None:
        self.path.mkdir(exist_ok=True)
        write_tensors(
            self.path / file,
            {name: TensorSpec("F32", tuple(t.shape)) for name, t in tensors.items()},
            lambda name: tensors[name].detach().cpu().numpy(),
            {"notes": json.dumps(notes, sort_keys=True)},
        )

    def _files(self) -> list[Path]:
        return [p for p in self.path.glob("state-*") if _STATE_FILE.fullmatch(p.name)]


def pack_state(
    parameters: Mapping[str, nn.Parameter], optimiser: CombinedOptimiser | Optimizer | None = None
) -> dict[str, Tensor]:
    """Parameters and what the optimiser remembers of each, whole, by flat names. All processes must
    ask."""
    from otter_cli.training.sharding import gather_full

    packed = {
        f"value/{name}": gather_full(parameter.detach()) for name, parameter in parameters.items()
    }
    if optimiser is not None:
        for name, parameter in parameters.items():
            for key, tensor in optimiser.state[parameter].items():
                packed[f"{key}/{name}"] = gather_full(tensor)
    return packed


def unpack_state(
    tensors: Mapping[str, Tensor],
    parameters: Mapping[str, nn.Parameter],
    optimiser: CombinedOptimiser | Optimizer | None = None,
) -> None:
    """The inverse of `pack`, in place. Raises ValueError unless there is a value for each parameter
    and nothing for any other."""
    from otter_cli.training.sharding import shard_like

    _check_names(tensors, parameters)
    for flat, tensor in tensors.items():
        key, _, name = flat.partition("/")
        parameter = parameters[name]
        if key == "value":
            value = shard_like(tensor, parameter)
            if value.shape != parameter.shape:  # copy_ would broadcast
                raise ValueError(f"{flat} is {list(value.shape)}, not {list(parameter.shape)}")
            parameter.detach().copy_(value)
        elif optimiser is not None:
            # A fused AdamW counts its steps where the parameter is.
            counted = key == "step"
            remembered = tensor.to(parameter.device) if counted else shard_like(tensor, parameter)
            optimiser.state[parameter][key] = remembered


def _check_names(tensors: Mapping[str, Tensor], parameters: Mapping[str, nn.Parameter]) -> None:
    if missing := [name for name in parameters if f"value/{name}" not in tensors]:
        raise ValueError(f"there is no value of {missing[0]}")
    if others := [name for name in tensors if name.partition("/")[2] not in parameters]:
        raise ValueError(f"{others[0]} is not of a parameter of this run")


def _best_file(step: int) -> str:
    return _BEST_FILE.format(f"{step:08d}")


def _step_of(path: Path) -> int:
    found = _STATE_FILE.fullmatch(path.name)
    assert found is not None
    return int(found[1])


def _read_tensors(path: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    read_header(path)
    with translate_library_errors(
        path, "the state of the run", library="safetensors", hint=_DAMAGED_HINT
    ):
        return load_file(path)


def _read_notes(path: Path) -> dict[str, Any]:
    text = read_header(path).metadata.get("notes")
    if text is None:
        raise OtterError(f"{path} holds no notes of a run", hint=_DAMAGED_HINT)
    notes: dict[str, Any] = parse_json_object(text.encode(), f"{path}: notes")
    return notes


# What may change between a run and its resumption: it moves no parameter.
_MAY_CHANGE = {"save_every", "allow_truncation", "baselines"}


def run_identity(recipe: Recipe, data: Mapping[str, Any]) -> dict[str, Any]:
    """What two runs must share to end in the same bits."""
    return {"recipe": _deciding_settings(recipe), "data": _deciding_data(data)}


def _deciding_settings(recipe: Recipe) -> dict[str, Any]:
    # Unless an evaluation chooses the step that is kept.
    free = _MAY_CHANGE if recipe.best else {*_MAY_CHANGE, "evaluate_every"}
    return recipe.model_dump(mode="json", exclude=free)


def _deciding_data(data: Mapping[str, Any]) -> dict[str, Any]:
    """The record of the data without what moves no parameter: columns that nothing reads."""
    return {
        key: _deciding_data(value) if isinstance(value, Mapping) else value
        for key, value in data.items()
        if key != IGNORED_COLUMNS
    }


def _with_defaults(identity: Mapping[str, Any]) -> dict[str, Any]:
    """An identity whose recipe may be older than some keys: they had the values that they have when
    they are left out."""
    try:
        return {**identity, "recipe": _deciding_settings(Recipe.model_validate(identity["recipe"]))}
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
        before, now = _flatten(_with_defaults(notes["identity"])), _flatten(identity)
    differing = sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key))
    if differing:
        key = differing[0]
        raise OtterError(
            f"the run to resume had {key} = {before.get(key)!r}, not {now.get(key)!r}",
            hint="resume with the same recipe and data, or --restart",
        )


def _flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat
