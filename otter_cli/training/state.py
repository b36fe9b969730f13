"""The state of a run in FOLDER/training/: written whole or not at all, the last two kept."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from otter_cli.checkpoint.header import read_header
from otter_cli.checkpoint.strict_json import parse_object
from otter_cli.checkpoint.writer import TensorSpec, write_tensors

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.optim import Optimizer

    from otter_cli.training.schedule import Optimisers

_KEPT = 2
_FILE = re.compile(r"state-(\d{8})\.safetensors")
_BEST = "best-{}.safetensors"


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
        from safetensors.torch import load_file

        newest = self.newest()
        if newest is None:
            return None
        return State(_step(newest), load_file(newest), _notes(newest))

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
        from safetensors.torch import load_file

        return load_file(self.path / _best(step))

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
    """The inverse of `pack`, in place."""
    from otter_cli.training.sharding import parted

    for flat, tensor in tensors.items():
        key, _, name = flat.partition("/")
        parameter = parameters[name]
        if key == "value":
            parameter.detach().copy_(parted(tensor, parameter))
        elif optimiser is not None:
            # A fused AdamW counts its steps where the parameter is.
            counted = key == "step"
            remembered = tensor.to(parameter.device) if counted else parted(tensor, parameter)
            optimiser.state[parameter][key] = remembered


def _best(step: int) -> str:
    return _BEST.format(f"{step:08d}")


def _step(path: Path) -> int:
    found = _FILE.fullmatch(path.name)
    assert found is not None
    return int(found[1])


def _notes(path: Path) -> dict[str, Any]:
    notes: dict[str, Any] = parse_object(
        read_header(path).metadata["notes"].encode(), f"{path}: notes"
    )
    return notes
