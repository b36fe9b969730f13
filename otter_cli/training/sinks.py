"""Where curves go beside metrics.jsonl: TensorBoard, trackio or wandb, each as its own package
keeps them."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from importlib import import_module
from pathlib import Path
from secrets import token_hex
from typing import Any, Protocol

from otter_cli.core.errors import OtterError
from otter_cli.core.small_files import read_small_text

_PROJECT = "otter"
_RUN = "run-id"


class Sink(Protocol):
    """Takes numbers by name, of steps that never fall but where a run was killed: a resumed one
    says those after its last state again, and says the same."""

    def write(self, values: Mapping[str, float], step: int) -> None: ...

    def close(self) -> None: ...


class TensorBoard:
    """Into FOLDER/tensorboard."""

    def __init__(self, module: Any, folder: Path, step: int) -> None:
        self.writer = module.SummaryWriter(folder / "tensorboard", purge_step=step + 1)

    def write(self, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def close(self) -> None:
        self.writer.close()


class Trackio:
    """Into trackio's own folder (TRACKIO_DIR), or a Space that its environment names."""

    def __init__(self, module: Any, folder: Path, step: int) -> None:
        project = os.environ.get("TRACKIO_PROJECT", _PROJECT)
        self.module = module
        with redirect_stdout(sys.stderr):  # what it says is no part of --json
            self.run = module.init(project=project, name=_run_id(folder, step), resume="allow")

    def write(self, values: Mapping[str, float], step: int) -> None:
        self.run.log(dict(values), step=step)

    def close(self) -> None:
        with redirect_stdout(sys.stderr):
            self.module.finish()


class Wandb:
    """To its server, or with WANDB_MODE=offline into ./wandb (WANDB_DIR): its links have no place
    in a checkpoint."""

    def __init__(self, module: Any, folder: Path, step: int) -> None:
        name = _run_id(folder, step)
        try:
            self.run = module.init(
                project=os.environ.get("WANDB_PROJECT", _PROJECT),
                id=name,
                name=name,
                resume="allow",
                settings=module.Settings(console="off", silent=True),
            )
        except module.Error as error:
            raise OtterError(
                f"wandb does not start: {error}",
                hint="wandb login, or WANDB_MODE=offline; metrics.jsonl is written in any case",
            ) from error

    def write(self, values: Mapping[str, float], step: int) -> None:
        self.run.log(dict(values), step=step)

    def close(self) -> None:
        self.run.finish()


# Module, package to install, and what it becomes.
SINKS: dict[str, tuple[str, str, Callable[[Any, Path, int], Sink]]] = {
    "tensorboard": ("torch.utils.tensorboard", "tensorboard", TensorBoard),
    "trackio": ("trackio", "trackio", Trackio),
    "wandb": ("wandb", "wandb", Wandb),
}


def check_sink(name: str) -> None:
    """Raises OtterError where there is none of that name, or its package is not installed."""
    _module(name)


def open_sink(name: str, folder: Path, step: int) -> Sink:
    """Goes on after `step` in FOLDER's run, or begins one at step 0. Raises OtterError."""
    return SINKS[name][2](_module(name), folder, step)


def _module(name: str) -> Any:
    if name not in SINKS:
        raise OtterError(f"--log knows no {name!r}", hint=f"one of {', '.join(SINKS)}")
    module, package, _ = SINKS[name]
    try:
        return import_module(module)
    except ImportError as error:
        raise OtterError(
            f"--log {name} needs the package {package}, which is not installed",
            hint=f"pip install {package}; metrics.jsonl is written in any case",
        ) from error


def _run_id(folder: Path, step: int) -> str:
    """By which a resumed run is the one that was interrupted."""
    file = folder / _RUN
    if step == 0 or not file.exists():
        file.write_text(f"{folder.parent.name}-{token_hex(4)}")
    return read_small_text(file)
