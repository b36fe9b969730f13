"""Strict loading: every tensor of base and insertion accounted for, dtypes pinned to the files'."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from otter_cli.checkpoint.folder import Checkpoint
from otter_cli.core.errors import OtterError
from otter_cli.families import FAMILIES, BaseShape, base_shape
from otter_cli.families.quantised import quantisation_fault
from otter_cli.insertion.check import check_files
from otter_cli.insertion.manifest import Manifest
from otter_cli.insertion.opened import IfChanged, open_graft
from otter_cli.insertion.plan import Plan
from otter_cli.insertion.storage import open_stored
from otter_cli.model.device import check_device
from otter_cli.model.pretrained import load_strictly

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from otter_cli.model.otter import OtterForCausalLM


def load(
    cls: type[OtterForCausalLM],
    folder: Path,
    *,
    base: Path | None,
    if_changed: IfChanged = "refuse",
    dtype: torch.dtype | None,
    insertion_dtype: torch.dtype | None,
    attn_implementation: str | None,
    quantization_config: Any,
    device: torch.device,
) -> OtterForCausalLM:
    check_device(str(device))
    manifest = open_graft(folder, base=base, if_changed=if_changed)
    model = load_base(
        base or folder,
        dtype=dtype,
        attn_implementation=attn_implementation,
        quantization_config=quantization_config,
    )
    shape = base_shape(Checkpoint.open(base or folder).config)
    tensors = read_inserted(folder, manifest, shape)
    otter = assemble(cls, model, shape, manifest, tensors, dtype=insertion_dtype or model.dtype)
    return otter.to(device).eval()


def load_beside(
    other: OtterForCausalLM, folder: Path, *, insertion_dtype: torch.dtype | None
) -> OtterForCausalLM:
    """A second graft on the very modules that `other` holds: the taps of each are still unless it
    is the one that runs."""
    manifest = Manifest.read(folder)
    manifest.check_tensors(folder)
    if manifest.base.identity() != other.manifest.base.identity():
        raise OtterError(
            f"{folder} was made for {manifest.base.source}, another base than the one in memory",
            hint="load it by itself: OtterForCausalLM.from_pretrained",
        )
    tensors = read_inserted(folder, manifest, other.shape)
    dtype = insertion_dtype or other.base.dtype
    second = assemble(type(other), other.base, other.shape, manifest, tensors, dtype=dtype)
    return second.to(other.device).eval()


def assemble(
    cls: type[OtterForCausalLM],
    base: PreTrainedModel,
    shape: BaseShape,
    manifest: Manifest,
    tensors: Mapping[str, Tensor],
    *,
    dtype: torch.dtype,
) -> OtterForCausalLM:
    """A loaded base with its inserted tensors, by their names on disk: all of them, no others."""
    with torch.device("meta"):
        otter = cls(base, shape, manifest)
    for name, insertion in otter.insertions.items():
        prefix = f"otter.{name}."
        own = {
            key.removeprefix(prefix): t.to(dtype)
            for key, t in tensors.items()
            if key.startswith(prefix)
        }
        insertion.load_state_dict(own, strict=True, assign=True)
    return otter


def load_base(
    folder: Path,
    *,
    dtype: torch.dtype | None = None,
    attn_implementation: str | None = None,
    quantization_config: Any = None,
    kind: type[PreTrainedModel] | None = None,
) -> PreTrainedModel:
    """A stock transformers model, with the file's dtype by default. Raises OtterError where the
    files contradict each other, where transformers refuses them, and for unaccounted tensors.
    `kind`: its class, where transformers' own for it is not wanted."""
    check_loadable(Checkpoint.open(folder))
    optional = {
        "attn_implementation": attn_implementation,
        "quantization_config": quantization_config,
    }
    model: PreTrainedModel = load_strictly(
        folder,
        kind or "AutoModelForCausalLM",
        what="the base",
        dtype=dtype,
        **{name: value for name, value in optional.items() if value is not None},
    )
    return model


def check_loadable(checkpoint: Checkpoint) -> None:
    """What `graft` refuses, every load refuses too. The rest the load itself shows."""
    family = checkpoint.config.get("model_type")
    if isinstance(family, str) and family in FAMILIES:
        check_files(checkpoint, base_shape(checkpoint.config))
    elif fault := quantisation_fault(checkpoint.config):
        raise OtterError(f"{checkpoint.path}: {fault[0]}", hint=fault[1])


def read_inserted(folder: Path, manifest: Manifest, shape: BaseShape) -> dict[str, Tensor]:
    """All inserted tensors, checked by name, shape and dtype against the plans. Raises
    OtterError."""
    plans = [Plan(config, shape) for config in manifest.insertions]
    tensors: dict[str, Tensor] = {}
    for file in open_stored(folder, plans).files:
        tensors |= load_file(folder / file)
    return tensors
