"""Training a probe: a gated linear readout over all layers of the frozen base."""

from __future__ import annotations

from collections.abc import Container, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from otter_cli.checkpoint.folder import Checkpoint
from otter_cli.checkpoint.writer import TensorSpec, write_tensors
from otter_cli.core.atomic import write_json
from otter_cli.core.errors import OtterError
from otter_cli.core.library_errors import library_reads
from otter_cli.families import BaseShape, base_shape
from otter_cli.insertion import TrainingRecord
from otter_cli.model.load import load_base
from otter_cli.model.probe import GatedProbe, Reads, features_of
from otter_cli.signals import SignalConfig
from otter_cli.training.objectives import Positions, Read
from otter_cli.training.separate import RECORD
from otter_cli.training.targets import check_scores_texts
from otter_cli.training.trainee import Driftless

if TYPE_CHECKING:
    from otter_cli.data.datasets import Batch

PROBE = "probe.safetensors"


class ProbeTrainee(Driftless):
    """The readout's weights are all that is trained."""

    gradient_free: frozenset[str] = frozenset()

    def __init__(
        self,
        source: Path,
        to: Path,
        signal: SignalConfig,
        reads: Reads,
        untouched: Container[str],
        device: str,
    ) -> None:
        check_scores_texts("a probe", signal)
        self.folder, self.signal, self.reads = to, signal, reads
        self.signals: Mapping[str, SignalConfig] = {signal.name: signal}
        self.model: Any = load_base(source).to(device).eval().requires_grad_(False)
        shape = base_shape(Checkpoint.open(source).config)
        width = features_of(shape, reads)
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

    def reader(self, name: str) -> Read:
        return self._read

    def _read(self, batch: Batch, at: Positions, tokens: Tensor | None = None) -> Tensor:
        assert tokens is None
        pooled = self.probe(batch.input_ids, batch.attention_mask)
        one = self.signal.kind == "value" and self.signal.size == 1
        return pooled[at].squeeze(-1) if one else pooled[at]

    def write(self, records: Mapping[str, TrainingRecord]) -> None:
        told = {"reads": self.reads, "signal": self.signal.model_dump_json()}
        write_probe(self.folder / PROBE, dict(self.model.probe.items()), told, records)


def load_probe(folder: Path, base: Any, shape: BaseShape) -> tuple[GatedProbe, SignalConfig]:
    """A trained probe on a base that is loaded. Raises OtterError for one of another shape."""
    from safetensors import safe_open
    from safetensors.torch import load_file

    with library_reads(folder / PROBE, "the probe", library="safetensors"):
        weights = load_file(folder / PROBE, device=str(base.device))
        with safe_open(folder / PROBE, "pt") as file:
            told = file.metadata()
        probe = GatedProbe(base, shape, told["reads"], weights)
        signal = SignalConfig.model_validate_json(told["signal"])
        read, there = weights["weight"].shape[1], features_of(shape, told["reads"])
    if read != there:
        raise OtterError(
            f"{folder} reads {read} numbers of a token, and this base has {there}",
            hint="a probe is of the base that it was trained on",
        )
    return probe, signal


def write_probe(
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
    write_json(path.parent / RECORD, told_of)
