"""Sound checkpoints to spoil, and what reading all of one means."""

import json
from pathlib import Path

import safetensors
import safetensors.torch
import torch

from otter_cli.checkpoint.dtypes import NUMPY_DTYPES
from otter_cli.checkpoint.folder import Checkpoint

CONFIG = {"model_type": "llama", "hidden_size": 8, "rope_parameters": {"rope_theta": 1e4}}


def tensors(start: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(start)
    kinds = [torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.bool]
    values = {
        f"model.layers.{start + i}.weight": torch.randn(3, 4, generator=generator).to(kind)
        for i, kind in enumerate(kinds)
    }
    return values | {f"scalar{start}": torch.tensor(1.0), f"empty{start}": torch.zeros(0, 4)}


def write_folders(root: Path) -> list[Path]:
    """A checkpoint of one file, and one of two shards."""
    whole, parts = root / "whole", root / "parts"
    for folder in (whole, parts):
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(CONFIG))
    safetensors.torch.save_file(tensors(0), whole / "model.safetensors", {"format": "pt"})
    placed: dict[str, str] = {}
    for i in (1, 2):
        shard = f"model-0000{i}-of-00002.safetensors"
        safetensors.torch.save_file(tensors(10 * i), parts / shard)
        placed |= dict.fromkeys(tensors(10 * i), shard)
    (parts / "model.safetensors.index.json").write_text(json.dumps({"weight_map": placed}))
    return [whole, parts]


def read_everything(folder: Path) -> Checkpoint:
    checkpoint = Checkpoint.open(folder)
    for name, info in checkpoint.tensors.items():
        assert len(checkpoint.read_raw(name)) == info.nbytes
        if info.dtype in NUMPY_DTYPES:
            assert checkpoint.read(name).shape == info.shape
    return checkpoint


def check_against_the_library(checkpoint: Checkpoint) -> None:
    for file in checkpoint.weight_files:
        reference = dict(safetensors.deserialize((checkpoint.path / file).read_bytes()))
        assert set(reference) == {name for name, at in checkpoint.file_of.items() if at == file}
        for name, tensor in reference.items():
            info = checkpoint.tensors[name]
            assert (info.dtype, list(info.shape)) == (tensor["dtype"], tensor["shape"])
            assert checkpoint.read_raw(name) == tensor["data"]
