"""The states of a run in FOLDER/training/, and what a resumed run must have in common with them.

A state is written whole or not at all; the last two are kept. A run resumes only with the recipe
and the data that it began with."""

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
    """`step`: steps done. `metadata`: JSON of the run. There is no random state in it, since every
    step seeds itself from its number."""

    step: int
    tensors: dict[str, Tensor]
    metadata: dict[str, Any]


class StateFolder:
    """States by step. A run resumes from the newest."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "training"

    def newest(self) -> Path | None:
        return max(self._files(), default=None)

    def metadata(self) -> dict[str, Any] | None:
        """Of the newest state, whose tensors are not read."""
        newest = self.newest()
        return None if newest is None else _read_metadata(newest)

    def load(self) -> TrainingState | None:
        newest = self.newest()
        if newest is None:
            return None
        return TrainingState(_step_of(newest), _read_tensors(newest), _read_metadata(newest))

    @contextmanager
    def reading_errors(self, best_step: int | None = None) -> Iterator[None]:
        """Inside, a missing or wrong value is reported as damage of the newest state's file, or of
        the file with the best step's parameters. Raises OtterError."""
        file = (self.newest() or self.path) if best_step is None else self._best_file(best_step)
        with translate_library_errors(
            file, "the state of the run", library="otter", hint=_DAMAGED_HINT
        ):
            yield

    def save(
        self,
        step: int,
        tensors: Mapping[str, Tensor],
        metadata: Mapping[str, Any],
        best: int | None = None,
    ) -> None:
        """`best`: the step whose parameters stay; those of other best steps are removed."""
        self._write(self.path / f"state-{step:08d}.safetensors", tensors, metadata)
        for old in sorted(self._files())[:-_STATES_KEPT]:
            old.unlink()
        for file in self.path.glob(_BEST_FILE.format("*")):
            if best is None or file != self._best_file(best):
                file.unlink()

    def save_best(self, step: int, tensors: Mapping[str, Tensor]) -> None:
        """The parameters of the best step so far. The state that names the step is saved later."""
        self._write(self._best_file(step), tensors, {})

    def load_best(self, step: int) -> dict[str, Tensor]:
        return _read_tensors(self._best_file(step))

    def clear(self) -> None:
        """Removes all states, oldest first: if this is interrupted, the newest is still there."""
        for file in sorted(self._files()):
            file.unlink()
        for file in self.path.glob(_BEST_FILE.format("*")):
            file.unlink()

    def _write(
        self, file: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]
    ) -> None:
        self.path.mkdir(exist_ok=True)
        write_tensors(
            file,
            {name: TensorSpec("F32", tuple(t.shape)) for name, t in tensors.items()},
            lambda name: tensors[name].detach().cpu().numpy(),
            {"notes": json.dumps(metadata, sort_keys=True)},
        )

    def _files(self) -> list[Path]:
        return [p for p in self.path.glob("state-*") if _STATE_FILE.fullmatch(p.name)]

    def _best_file(self, step: int) -> Path:
        return self.path / _BEST_FILE.format(f"{step:08d}")


def pack_state(
    parameters: Mapping[str, nn.Parameter], optimiser: CombinedOptimiser | Optimizer | None = None
) -> dict[str, Tensor]:
    """The full parameters, and the optimiser's state of each, by flat names. All processes must
    call this."""
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
    """The inverse of `pack_state`, in place. Raises ValueError unless there is a value for each
    parameter, and nothing for any other."""
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
            # A fused AdamW keeps its step count on the parameter's device. It is never sharded.
            is_count = key == "step"
            optimiser.state[parameter][key] = (
                tensor.to(parameter.device) if is_count else shard_like(tensor, parameter)
            )


def _check_names(tensors: Mapping[str, Tensor], parameters: Mapping[str, nn.Parameter]) -> None:
    if missing := [name for name in parameters if f"value/{name}" not in tensors]:
        raise ValueError(f"there is no value of {missing[0]}")
    if others := [name for name in tensors if name.partition("/")[2] not in parameters]:
        raise ValueError(f"{others[0]} is not of a parameter of this run")


def _step_of(path: Path) -> int:
    match = _STATE_FILE.fullmatch(path.name)
    assert match is not None
    return int(match[1])


def _read_tensors(path: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    read_header(path)
    with translate_library_errors(
        path, "the state of the run", library="safetensors", hint=_DAMAGED_HINT
    ):
        return load_file(path)


def _read_metadata(path: Path) -> dict[str, Any]:
    text = read_header(path).metadata.get("notes")
    if text is None:
        raise OtterError(f"{path} holds no notes of a run", hint=_DAMAGED_HINT)
    return parse_json_object(text.encode(), f"{path}: notes")


# What a resumed run may change, since it has no effect on the parameters.
_MAY_CHANGE = {"save_every", "allow_truncation", "baselines"}


def run_identity(recipe: Recipe, data: Mapping[str, Any]) -> dict[str, Any]:
    """What two runs must have in common to end with the same bits."""
    return {"recipe": _deciding_settings(recipe), "data": _deciding_data(data)}


def _deciding_settings(recipe: Recipe) -> dict[str, Any]:
    # With `best`, evaluations decide which step is kept.
    free = _MAY_CHANGE if recipe.best else {*_MAY_CHANGE, "evaluate_every"}
    return recipe.model_dump(mode="json", exclude=free)


def _deciding_data(data: Mapping[str, Any]) -> dict[str, Any]:
    """The record of the data without the columns that nothing reads."""
    return {
        key: _deciding_data(value) if isinstance(value, Mapping) else value
        for key, value in data.items()
        if key != IGNORED_COLUMNS
    }


def _with_defaults(identity: Mapping[str, Any]) -> dict[str, Any]:
    """An identity with defaults for the keys that its recipe, of an older version, lacks."""
    try:
        return {**identity, "recipe": _deciding_settings(Recipe.model_validate(identity["recipe"]))}
    except ValidationError:
        return dict(identity)


def refuse_unfinished(states: StateFolder) -> None:
    """Raises OtterError where a stopped run would be overwritten by oversight."""
    metadata = states.metadata()
    if metadata is None:
        return
    with states.reading_errors():
        done, steps = metadata["step"], metadata["identity"]["recipe"]["steps"]
        finished = metadata["done"]
    if not finished:
        raise OtterError(
            f"{states.path} holds an unfinished run, at step {done} of {steps}",
            hint="--resume continues it; --restart drops it and trains the tensors as they are",
        )


def check_same_run(states: StateFolder, identity: Mapping[str, Any]) -> None:
    """Raises OtterError where the run to resume has another recipe or other data."""
    metadata = states.metadata()
    if metadata is None:
        return
    with states.reading_errors():
        before, now = _flatten(_with_defaults(metadata["identity"])), _flatten(identity)
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
