"""What is measured: a stock base, and a graft on the same weights in memory."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from otter_cli.benchmarks.overhead.shapes import random_base
from otter_cli.core.seeds import derive_seed
from otter_cli.families import base_shape
from otter_cli.insertion import Manifest, Plan, resolve
from otter_cli.insertion.manifest import BaseRecord, InsertedRecord
from otter_cli.insertion.opened import open_graft
from otter_cli.insertion.storage import stored_files

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from otter_cli.families import BaseShape
    from otter_cli.model import OtterForCausalLM


@dataclass(frozen=True)
class Subject:
    """`stock` has no hook of ours. `file_bytes`: the inserted files', where they lie on disk."""

    name: str
    stock: PreTrainedModel
    shape: BaseShape
    graft: OtterForCausalLM
    plans: Sequence[Plan]
    file_bytes: int | None = None

    @property
    def layer_weights(self) -> int:
        """Matrix elements in the decoder's layers: what every token is multiplied with."""
        layers: Any = self.stock.get_submodule(self.shape.family.layers)
        return sum(p.numel() for p in layers.parameters() if p.ndim > 1)

    @property
    def parameters(self) -> int:
        return sum(p.numel() for p in self.stock.parameters())

    @property
    def inserted(self) -> int:
        return sum(plan.parameters for plan in self.plans)


def from_shape(name: str, sizes: dict[str, Any], *, dtype: torch.dtype, device: str) -> Subject:
    """A random base of that shape with an insertion, in memory; nothing is loaded."""
    stock = random_base(name, dtype, device)
    shape = base_shape(stock.config.to_dict())
    return insert(name, stock, Plan(resolve(shape, init="normal", **sizes), shape))


def insert(name: str, stock: PreTrainedModel, plan: Plan) -> Subject:
    """`plan` with random values beside `stock`, whose weights it shares."""
    import torch

    from otter_cli.model import OtterForCausalLM
    from otter_cli.model.load import assemble

    manifest = _manifest(name, stock, plan)
    tensors = {}
    for slot in plan.slots:
        generator = torch.Generator(stock.device)
        generator.manual_seed(derive_seed("overhead", slot.name))
        noise = torch.randn(slot.shape, generator=generator, device=stock.device)
        tensors[slot.name] = 0.02 * noise + float(slot.role == "norm")
    graft = assemble(
        OtterForCausalLM, twin(stock), plan.shape, manifest, tensors, dtype=stock.dtype
    )
    return Subject(name, stock, plan.shape, graft.to(stock.device).eval(), [plan])


def from_folder(folder: Path, *, dtype: torch.dtype | None, device: str) -> Subject:
    """A grafted folder. Raises OtterError where it is none, or not whole."""
    from otter_cli.model import OtterForCausalLM, load_base
    from otter_cli.model.load import assemble, read_inserted

    manifest = open_graft(folder)
    stock = load_base(folder, dtype=dtype).to(device).eval()
    shape = base_shape(stock.config.to_dict())
    plans = [Plan(config, shape) for config in manifest.insertions]
    tensors = read_inserted(folder, manifest, shape)
    graft = assemble(OtterForCausalLM, twin(stock), shape, manifest, tensors, dtype=stock.dtype)
    stored = sum((folder / file).stat().st_size for file in stored_files(folder))
    name = folder.resolve().name
    return Subject(name, stock, shape, graft.to(device).eval(), plans, stored)


def twin(model: PreTrainedModel) -> PreTrainedModel:
    """The same model again, on the same weights in memory: neither sees the other's hooks."""
    from torch import nn

    shared = {id(p): nn.Parameter(p.data) for p in model.parameters()}
    return copy.deepcopy(model, memo=shared)


def _manifest(name: str, stock: PreTrainedModel, plan: Plan) -> Manifest:
    base = BaseRecord(
        source=name,
        family=plan.shape.family.model_type,
        parameters=sum(p.numel() for p in stock.parameters()),
        dtype=str(stock.dtype).removeprefix("torch."),
        files={},
    )
    # There is no file whose digest it could be.
    return Manifest(base=base, insertions=[plan.config], inserted=InsertedRecord(sha256=""))
