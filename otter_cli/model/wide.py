"""Loading the wide layout, one matrix `[[W, W^h], [0, W^z]]` for each projection.

Its modelling file is code. Only the text that this package holds is ever run; a folder whose own
copy differs from it is refused."""

from __future__ import annotations

import sys
from functools import cache
from importlib import resources
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from otter_cli.checkpoint.folder import Checkpoint
from otter_cli.core.errors import OtterError
from otter_cli.core.strict_files import read_small_file
from otter_cli.families.registry import WIDE_CLASS_NAMES, WIDE_PREFIX, is_wide_config

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


MODELLING_FILE = "modeling_otter_wide.py"
AUTO_MAP = {
    "AutoConfig": "modeling_otter_wide.OtterWideConfig",
    "AutoModelForCausalLM": "modeling_otter_wide.OtterWideForCausalLM",
}


def _family(config: dict[str, Any]) -> str:
    return str(config.get("model_type")).removeprefix(WIDE_PREFIX)


def modelling_file(family: str) -> bytes:
    """The code that transformers runs to load a wide export; it imports nothing of otter."""
    text = resources.files("otter_cli.model").joinpath(f"{MODELLING_FILE}.txt").read_text("utf-8")
    return text.replace("Llama", WIDE_CLASS_NAMES[family]).replace("llama", family).encode()


def load_wide(folder: Path, *, dtype: torch.dtype | None = None) -> PreTrainedModel:
    """A wide export by transformers and the modelling code of this package, with every tensor
    accounted for. The folder's own copy of that code is for engines, and is not run here. Raises
    OtterError where it is not byte for byte what otter writes: engines would run it."""
    from otter_cli.model.load import load_base

    config = Checkpoint.open(folder).config
    refuse_foreign_code(folder, config)
    return load_base(folder, dtype=dtype, kind=wide_class(_family(config)))


@cache
def wide_class(family: str) -> Any:
    """The class that loads a wide export of that family, made of the package's own file."""
    name = f"otter_cli.model._wide_{family}"
    module = ModuleType(name)
    # dataclasses look a class's module up by its name.
    sys.modules[name] = module
    exec(compile(modelling_file(family), f"{MODELLING_FILE} of {family}", "exec"), vars(module))
    return module.OtterWideForCausalLM


def refuse_foreign_code(folder: Path, config: dict[str, Any]) -> None:
    """Raises OtterError unless the configuration names our modelling file and nothing else, and
    that file is ours."""
    family = _family(config)
    if not is_wide_config(config) or family not in WIDE_CLASS_NAMES:
        raise OtterError(
            f"{folder} is no wide export of otter",
            hint="`otter export GRAFTED DIR --to wide` writes one",
        )
    # An entry such as `someone/repository--module.Class` would be fetched and run.
    if config.get("auto_map") != AUTO_MAP:
        raise OtterError(
            f"{folder}: config.json asks for code that is not otter's: {config.get('auto_map')}",
            hint="export the graft again",
        )
    path = folder / MODELLING_FILE
    if not path.is_file() or read_small_file(path) != modelling_file(family):
        raise OtterError(
            f"{path} is not the file that this otter writes, and engines would run it",
            hint="export the graft again, or load it yourself with trust_remote_code",
        )
