"""Wide heads for future tokens: the control that has an insertion's parameters and no stream. Of
heads with a cell it is a wider cell on the base's state: see baselines.py."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from otter_cli.checkpoint.folder import Checkpoint
from otter_cli.core.errors import OtterError
from otter_cli.core.seeds import derive_seed
from otter_cli.families import BaseShape, base_shape
from otter_cli.insertion import Manifest, Plan, TrainingRecord
from otter_cli.model.load import load_base
from otter_cli.model.unembedding import FrozenHead
from otter_cli.signals import SignalConfig
from otter_cli.training.objectives import Positions, Read
from otter_cli.training.probe import write_probe
from otter_cli.training.trainee import Driftless

if TYPE_CHECKING:
    from otter_cli.data.datasets import Batch

WIDE_HEADS = "wide-heads.safetensors"


class WideHeadsTrainee(Driftless):
    """Head k says `unembed(y + W_k' silu(W_k y))`, W_k [width, d], on the base's final state alone;
    Medusa-1's own heads, of one square matrix, are the baseline `head`."""

    gradient_free: frozenset[str] = frozenset()

    def __init__(
        self,
        source: Path,
        to: Path,
        signal: SignalConfig,
        width: int | None,
        seed: int,
        device: str,
    ) -> None:
        if signal.kind != "future":
            raise OtterError(
                f"wide heads name future tokens; signal {signal.name!r} is of kind {signal.kind}",
                hint="for scores of texts there are probe, branch, lora, small and separate",
            )
        self.folder, self.signal = to, signal
        self.signals: Mapping[str, SignalConfig] = {signal.name: signal}
        self.shape = base_shape(Checkpoint.open(source).config)
        self.model: Any = load_base(source).eval().requires_grad_(False)
        wide, d = width or equal_width(source, self.shape, signal.size), self.shape.hidden
        draw = torch.Generator().manual_seed(derive_seed("wide heads", seed) % 2**63)
        self.model.heads = nn.ParameterDict(
            {
                "in": torch.randn(signal.size, wide, d, generator=draw) * d**-0.5,
                "out": torch.zeros(signal.size, d, wide),
            }
        )
        self.model.to(device)
        self.unembedding = FrozenHead(self.model, self.shape)
        self.parameters: Mapping[str, nn.Parameter] = dict(self.model.heads.items())

    def reader(self, name: str) -> Read:
        return _Heads(self)

    def write(self, records: Mapping[str, TrainingRecord]) -> None:
        told = {"signal": self.signal.model_dump_json()}
        write_probe(self.folder / WIDE_HEADS, self.parameters, told, records)


class _Heads:
    """The base is run once a batch."""

    def __init__(self, trainee: WideHeadsTrainee) -> None:
        self.trainee, self.signal = trainee, trainee.signal
        self.batch: Batch | None = None

    def __call__(self, batch: Batch, at: Positions, tokens: Tensor | None = None) -> Tensor:
        # Each head guesses by itself, whatever follows.
        heads, y = self.trainee.model.heads, self._states(batch)[at].float()
        inner = F.silu(torch.einsum("nd,kwd->nkw", y, heads["in"]))
        added = torch.einsum("nkw,kdw->nkd", inner, heads["out"])
        return self.trainee.unembedding.logits(y[:, None] + added)

    def base_logits(self, batch: Batch, at: Positions) -> Tensor:
        with torch.no_grad():
            return self.trainee.unembedding.logits(self._states(batch)[at])

    def _states(self, batch: Batch) -> Tensor:
        if self.batch is not batch:
            self.batch = batch
            decoder = self.trainee.model.get_submodule(self.trainee.shape.family.decoder)
            with torch.no_grad():
                out = decoder(
                    input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False
                )
            self.states: Tensor = out.last_hidden_state
        return self.states


def equal_width(folder: Path, shape: BaseShape, heads: int) -> int:
    """The width at which the heads have as many parameters as the graft, to the nearest."""
    return max(1, round(inserted_parameters(folder, shape) / (2 * heads * shape.hidden)))


def inserted_parameters(folder: Path, shape: BaseShape) -> int:
    return sum(Plan(c, shape).parameters for c in Manifest.read(folder).insertions)
