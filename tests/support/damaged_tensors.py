"""Checkpoints with one tensor missing, added, or of another shape."""

from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

Tensors = dict[str, Tensor]
EXTRA = "extra.adapter.weight"


def _without(tensors: Tensors, name: str) -> str:
    del tensors[name]
    return name


def _added(tensors: Tensors, name: str) -> str:
    tensors[EXTRA] = torch.ones(3)
    return EXTRA


def _longer(tensors: Tensors, name: str) -> str:
    tensors[name] = torch.cat([tensors[name], tensors[name][-1:]])
    return name


# Each function changes the tensors, given the name of one, and returns the name that an error must
# contain.
DAMAGE: dict[str, tuple[str, Callable[[Tensors, str], str]]] = {
    "missing head": ("head", _without),
    "missing layer tensor": ("layer", _without),
    "unexpected tensor": ("layer", _added),
    "wrong shape": ("layer", _longer),
    "wrong shape of the head": ("head", _longer),
}


def damage_file(folder: Path, kind: str, head: str, layer: str) -> str:
    """Damages the folder's weights, in safetensors or in Detoxify's format."""
    which, change = DAMAGE[kind]
    name = head if which == "head" else layer
    checkpoints = list(folder.glob("*.ckpt"))
    if checkpoints:
        loaded = torch.load(checkpoints[0], weights_only=True)
        named = change(loaded["state_dict"], name)
        torch.save(loaded, checkpoints[0])
        return named
    path = folder / "model.safetensors"
    if not path.exists():
        path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    named = change(tensors, name)
    save_file(tensors, path, {"format": "pt"})
    return named
