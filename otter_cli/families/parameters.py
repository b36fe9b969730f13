"""What a base comes to by its files."""

from __future__ import annotations

from otter_cli.checkpoint.folder import Checkpoint
from otter_cli.families.shape import BaseShape


def base_parameters(base: Checkpoint, shape: BaseShape) -> int:
    """Parameters of the base by its files: tied embeddings count once, stored masks not at all."""
    family = shape.family
    apart = {family.head_weight} if shape.tied else set()
    for layer in range(shape.layers):
        for buffer in family.buffers:
            apart.update(family.on_disk(family.layer(layer, buffer)))
    return sum(info.count for name, info in base.tensors.items() if name not in apart)
