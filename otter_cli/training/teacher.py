"""A teacher of state values: a trained graft's signal, or a reward model, at every prefix."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from otter_cli.core.errors import OtterError

if TYPE_CHECKING:
    from torch import Tensor

    from otter_cli.data.datasets import Batch
    from otter_cli.model import OtterForCausalLM

_Values = Callable[["Batch"], "Tensor"]


def teacher_values(folder: Path, signal: str, batch: Batch) -> Tensor:
    """[rows, tokens], without a graph. Raises OtterError where `folder` teaches no values."""
    import torch

    with torch.no_grad():
        return _load(folder, signal, str(batch.input_ids.device))(batch)


@lru_cache(maxsize=1)
def _load(folder: Path, signal: str, device: str) -> _Values:
    from otter_cli.checkpoint.listing import MANIFEST

    grafted = (folder / MANIFEST).is_file()
    return _graft(folder, signal, device) if grafted else _reward_model(folder, device)


@lru_cache(maxsize=1)
def _model(folder: Path, device: str) -> OtterForCausalLM:
    """Loaded once, however many of its signals teach in turns."""
    from otter_cli.model import OtterForCausalLM

    return OtterForCausalLM.from_pretrained(folder, device=device)


def _graft(folder: Path, signal: str, device: str) -> _Values:
    model = _model(folder, device)
    config = model.signal_configs.get(signal)
    if config is None or config.kind != "value" or config.size != 1:
        raise OtterError(
            f"{folder} has no signal {signal!r} of one value to teach with",
            hint="name one with teacher_signal",
        )

    def values(batch: Batch) -> Tensor:
        out = model(
            batch.input_ids,
            attention_mask=batch.attention_mask,
            signals=(signal,),
            logits=False,
            use_cache=False,
        )
        return out.signals[signal].float()

    return values


def _reward_model(folder: Path, device: str) -> _Values:
    from otter_cli.scorers.load import load_reward_model

    model = load_reward_model(folder, device=device)

    def values(batch: Batch) -> Tensor:
        out = model.base_model(
            input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False
        )
        scores: Tensor = model.score(out.last_hidden_state).squeeze(-1).float()
        return scores

    return values
