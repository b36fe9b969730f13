"""The state of a run in FOLDER/training/: written whole or not at all, the last two kept."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from otter_cli.checkpoint.header import read_header
from otter_cli.checkpoint.strict_json import parse_object
from otter_cli.checkpoint.writer import TensorSpec, write_tensors
from otter_cli.core.errors import OtterError
from otter_cli.core.library_errors import library_reads

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.optim import Optimizer

    from otter_cli.training.schedule import Optimisers

_KEPT = 2
_FILE = re.compile(r"state-(\d{8})\.safetensors")
_BEST = "best-{}.safetensors"
_HINT = "the file is damaged, or another version's: --restart drops the run"


@dataclass(frozen=True)
class State:
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
        return None if newest is None else _notes(newest)

    def load(self) -> State | None:
        newest = self.newest()
        if newest is None:
            return None
        return State(_step(newest), _tensors(newest), _notes(newest))

    @contextmanager
    def being_read(self, kept: int | None = None) -> Iterator[None]:
        """Around the use of what the newest state holds, or what is kept of a step: what is missing
        there, or of another kind, is a fault of its file."""
        place = (self.newest() or self.path) if kept is None else self.path / _best(kept)
        with library_reads(place, "the state of the run", library="otter", hint=_HINT):
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
        for old in sorted(self._files())[:-_KEPT]:
            old.unlink()
        for file in self.path.glob(_BEST.format("*")):
            if best is None or file.name != _best(best):
                file.unlink()

    def keep(self, step: int, tensors: Mapping[str, Tensor]) -> None:
        """The parameters of a step that was the best so far. A state that says so comes after."""
        self._write(_best(step), tensors, {})

    def kept(self, step: int) -> dict[str, Tensor]:
        return _tensors(self.path / _best(step))

    def clear(self) -> None:
        """Oldest first: whenever this is cut short, the newest still stands for the run."""
        for file in sorted(self._files()):
            file.unlink()
        for file in self.path.glob(_BEST.format("*")):
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
        return [p for p in self.path.glob("state-*") if _FILE.fullmatch(p.name)]


def pack(
    parameters: Mapping[str, nn.Parameter], optimiser: Optimisers | Optimizer | None = None
) -> dict[str, Tensor]:
    """Parameters and what the optimiser remembers of each, whole, by flat names. All processes must
    ask."""
    from otter_cli.training.sharding import whole

    packed = {f"value/{name}": whole(parameter.detach()) for name, parameter in parameters.items()}
    if optimiser is not None:
        for name, parameter in parameters.items():
            for key, tensor in optimiser.state[parameter].items():
                packed[f"{key}/{name}"] = whole(tensor)
    return packed


def unpack(
    tensors: Mapping[str, Tensor],
    parameters: Mapping[str, nn.Parameter],
    optimiser: Optimisers | Optimizer | None = None,
) -> None:
    """The inverse of `pack`, in place. Raises ValueError unless there is a value for each parameter
    and nothing for any other."""
    from otter_cli.training.sharding import parted

    _check_names(tensors, parameters)
    for flat, tensor in tensors.items():
        key, _, name = flat.partition("/")
        parameter = parameters[name]
        if key == "value":
            value = parted(tensor, parameter)
            if value.shape != parameter.shape:  # copy_ would broadcast
                raise ValueError(f"{flat} is {list(value.shape)}, not {list(parameter.shape)}")
            parameter.detach().copy_(value)
        elif optimiser is not None:
            # A fused AdamW counts its steps where the parameter is.
            counted = key == "step"
            remembered = tensor.to(parameter.device) if counted else parted(tensor, parameter)
            optimiser.state[parameter][key] = remembered


def _check_names(tensors: Mapping[str, Tensor], parameters: Mapping[str, nn.Parameter]) -> None:
    if missing := [name for name in parameters if f"value/{name}" not in tensors]:
        raise ValueError(f"there is no value of {missing[0]}")
    if others := [name for name in tensors if name.partition("/")[2] not in parameters]:
        raise ValueError(f"{others[0]} is not of a parameter of this run")


def _best(step: int) -> str:
    return _BEST.format(f"{step:08d}")


def _step(path: Path) -> int:
    found = _FILE.fullmatch(path.name)
    assert found is not None
    return int(found[1])


def _tensors(path: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    read_header(path)
    with library_reads(path, "the state of the run", library="safetensors", hint=_HINT):
        return load_file(path)


def _notes(path: Path) -> dict[str, Any]:
    text = read_header(path).metadata.get("notes")
    if text is None:
        raise OtterError(f"{path} holds no notes of a run", hint=_HINT)
    notes: dict[str, Any] = parse_object(text.encode(), f"{path}: notes")
    return notes
