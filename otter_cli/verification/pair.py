"""A base and the model that claims to say the same, loaded: once where they share their files."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from otter_cli.checkpoint.folder import Checkpoint
from otter_cli.insertion import MANIFEST
from otter_cli.model import OtterForCausalLM, load_base
from otter_cli.model.device import check_device
from otter_cli.model.pretrained import load_config, load_strictly
from otter_cli.model.wide import load_wide
from otter_cli.verification.request import Request
from otter_cli.verification.run import Subject
from otter_cli.verification.wide import is_wide

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_DTYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}


@dataclass(frozen=True)
class Pair:
    """`otter` is the graft's model, None where `other` is no graft of ours."""

    base: Subject
    other: Subject
    otter: OtterForCausalLM | None = None


def open_pair(request: Request, *, dtype: str, device: str, shared: bool) -> Pair:
    """Loads both in one dtype. `shared`: the files are equal by digest, so that one set of base
    modules serves both. Raises OtterError for what cannot be loaded whole."""
    check_device(device)
    kind: torch.dtype = getattr(torch, dtype)
    folder, base = request.folder, request.against
    if not (folder / MANIFEST).exists():
        plain = load_base(base, dtype=kind).to(device)
        other = load_other(folder, kind, trust=request.trust).to(device)
        return Pair(_subject(plain, plain), _subject(other, plain))
    adapted = None if (folder / "config.json").exists() else base
    # The static level has hashed every file, and what it saw is part of the report.
    otter = OtterForCausalLM.from_pretrained(
        folder,
        base=adapted,
        dtype=kind,
        device=device,
        if_base_changed="ignore" if adapted is None else "refuse",
    )
    plain = otter.base if shared else load_base(base, dtype=kind).to(device).eval()
    return Pair(_subject(plain, plain), _subject(otter.base, plain, otter.streaming), otter)


def positions(base: Path) -> int:
    """How many positions the base was made for, under whatever name its configuration has it."""
    return int(getattr(load_config(base), "max_position_embeddings", 2048))


def main_setting(base: Path) -> tuple[str, str]:
    """The dtype that the base is stored in, and the attention that transformers runs it with."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    stored = Checkpoint.open(base).dtype
    config = load_config(base)
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        return _DTYPES.get(stored, "float32"), "sdpa"
    model = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    attention = "sdpa" if getattr(model, "_supports_sdpa", True) else "eager"
    return _DTYPES.get(stored, "float32"), attention


def _subject(
    model: PreTrainedModel,
    base: PreTrainedModel,
    active: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> Subject:
    return Subject(model, base.config.vocab_size, active)


def load_other(folder: Path, dtype: torch.dtype, *, trust: bool) -> PreTrainedModel:
    """Any folder that transformers loads with no tensor left at random. Raises OtterError.

    Tensors that it leaves unread, as another tool's insertion has them, do not count here.
    """
    if is_wide(Checkpoint.open(folder).config):
        return load_wide(folder, dtype=dtype)
    model: PreTrainedModel = load_strictly(
        folder,
        "AutoModelForCausalLM",
        what="the model",
        dtype=dtype,
        extra_ok=True,
        trust_remote_code=trust,
    )
    return model
