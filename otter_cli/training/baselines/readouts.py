"""Readouts of the frozen base: a gated linear probe of all layers, and wide future-token heads."""

from __future__ import annotations

from collections.abc import Container, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from otter_cli.checkpoint.folder import Checkpoint
from otter_cli.checkpoint.safetensors_writer import TensorSpec, write_tensors
from otter_cli.core.atomic import write_json
from otter_cli.core.errors import OtterError
from otter_cli.core.library_errors import translate_library_errors
from otter_cli.core.process import derive_seed
from otter_cli.data.batches import Positions
from otter_cli.families.shape import BaseShape, base_shape
from otter_cli.graft.manifest import Manifest, TrainingRecord
from otter_cli.graft.plan import Plan
from otter_cli.model.gated_probe import GatedProbe, ProbeInputs, probe_width
from otter_cli.model.lm_head import FrozenHead
from otter_cli.model.load import load_base
from otter_cli.signals.config import SignalConfig
from otter_cli.training.baselines.separate import TRAINING_RECORD_FILE, check_scores_texts
from otter_cli.training.objectives.objective import ReadSignal
from otter_cli.training.trainable import KLFree

if TYPE_CHECKING:
    from otter_cli.data.datasets import Batch


PROBE_FILE = "probe.safetensors"


class ProbeTrainable(KLFree):
    """The readout's weights are all that is trained."""

    gradient_free: frozenset[str] = frozenset()

    def __init__(
        self,
        source: Path,
        to: Path,
        signal: SignalConfig,
        reads: ProbeInputs,
        untouched: Container[str],
        device: str,
    ) -> None:
        check_scores_texts("a probe", signal)
        self.folder, self.signal, self.reads = to, signal, reads
        self.signals: Mapping[str, SignalConfig] = {signal.name: signal}
        self.model: Any = load_base(source).to(device).eval().requires_grad_(False)
        shape = base_shape(Checkpoint.open(source).config)
        width = probe_width(shape, reads)
        self.model.probe = nn.ParameterDict(
            {
                "weight": torch.zeros(signal.size, width, device=device),
                "bias": torch.zeros(signal.size, device=device),
                "gate": torch.zeros(1, width, device=device),
                "gate_bias": torch.zeros(1, device=device),
            }
        )
        self.probe = GatedProbe(self.model, shape, reads, self.model.probe)
        self.parameters: Mapping[str, nn.Parameter] = {
            name: p for name, p in self.model.probe.items() if name not in untouched
        }

    def reader(self, name: str) -> ReadSignal:
        return self._read

    def _read(self, batch: Batch, at: Positions, tokens: Tensor | None = None) -> Tensor:
        assert tokens is None
        pooled = self.probe(batch.input_ids, batch.attention_mask)
        one = self.signal.kind == "value" and self.signal.size == 1
        return pooled[at].squeeze(-1) if one else pooled[at]

    def write(self, records: Mapping[str, TrainingRecord]) -> None:
        told = {"reads": self.reads, "signal": self.signal.model_dump_json()}
        write_readout(self.folder / PROBE_FILE, dict(self.model.probe.items()), told, records)


def load_probe(folder: Path, base: Any, shape: BaseShape) -> tuple[GatedProbe, SignalConfig]:
    """A trained probe on a base that is loaded. Raises OtterError for one of another shape."""
    from safetensors import safe_open
    from safetensors.torch import load_file

    with translate_library_errors(folder / PROBE_FILE, "the probe", library="safetensors"):
        weights = load_file(folder / PROBE_FILE, device=str(base.device))
        with safe_open(folder / PROBE_FILE, "pt") as file:
            told = file.metadata()
        probe = GatedProbe(base, shape, told["reads"], weights)
        signal = SignalConfig.model_validate_json(told["signal"])
        read, there = weights["weight"].shape[1], probe_width(shape, told["reads"])
    if read != there:
        raise OtterError(
            f"{folder} reads {read} numbers of a token, and this base has {there}",
            hint="a probe is of the base that it was trained on",
        )
    return probe, signal


def write_readout(
    path: Path,
    tensors: Mapping[str, Tensor],
    told: Mapping[str, str],
    records: Mapping[str, TrainingRecord],
) -> None:
    """What a probe is made of, and how it was trained, in a folder that has nothing of the base."""
    path.parent.mkdir(exist_ok=True)
    values = {name: tensor.detach().cpu().numpy() for name, tensor in tensors.items()}
    specs = {name: TensorSpec("F32", tuple(value.shape)) for name, value in values.items()}
    write_tensors(path, specs, values.__getitem__, told)
    told_of = {name: record.model_dump(mode="json") for name, record in records.items()}
    write_json(path.parent / TRAINING_RECORD_FILE, told_of)


WIDE_HEADS_FILE = "wide-heads.safetensors"


class WideHeadsTrainable(KLFree):
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

    def reader(self, name: str) -> ReadSignal:
        return _WideHeadsReader(self)

    def write(self, records: Mapping[str, TrainingRecord]) -> None:
        told = {"signal": self.signal.model_dump_json()}
        write_readout(self.folder / WIDE_HEADS_FILE, self.parameters, told, records)


class _WideHeadsReader:
    """The base is run once a batch."""

    def __init__(self, trainee: WideHeadsTrainable) -> None:
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
    return max(1, round(inserted_parameter_count(folder, shape) / (2 * heads * shape.hidden)))


def inserted_parameter_count(folder: Path, shape: BaseShape) -> int:
    return sum(Plan(c, shape).parameters for c in Manifest.read(folder).insertions)
