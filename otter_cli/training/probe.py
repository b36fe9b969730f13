"""A probe: a gated linear readout over all layers of the frozen base, pooled over tokens."""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from otter_cli.checkpoint.folder import Checkpoint
from otter_cli.checkpoint.writer import TensorSpec, write_tensors
from otter_cli.core.atomic import write_json
from otter_cli.core.errors import OtterError
from otter_cli.families import base_shape
from otter_cli.insertion import TrainingRecord
from otter_cli.model.load import load_base
from otter_cli.signals import SignalConfig
from otter_cli.training.objectives import Positions, Read
from otter_cli.training.separate import RECORD
from otter_cli.training.targets import check_scores_texts
from otter_cli.training.trainee import Driftless

if TYPE_CHECKING:
    from otter_cli.data.datasets import Batch

Reads = Literal["states", "branches"]
PROBE = "probe.safetensors"


class ProbeTrainee(Driftless):
    """In SWIFT's manner: the score of a prefix is the gated mean of its tokens' own,
    `sum g_s r_s / sum g_s` over s <= t, with `r_s = <w, f_s> + b` and
    `g_s = sigmoid(<w_g, f_s> + b_g)`.

    f_s: the states h after each layer (`states`), or what goes into each layer's output products,
    attention outputs a and FFN activations m (`branches`); each brought to rms 1.
    """

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
        self.shape = base_shape(Checkpoint.open(source).config)
        each, family = self.shape.hidden, self.shape.family
        if reads == "branches":
            if "output" in (family.attention.tap, family.ffn.tap):
                raise OtterError(
                    f"{family.architecture} hands over no inputs of its output products",
                    hint="baselines.probe.reads: states",
                )
            each = self.shape.heads * self.shape.head_dim + self.shape.ffn
        width = self.shape.layers * each
        self.model.probe = nn.ParameterDict(
            {
                "weight": torch.zeros(signal.size, width, device=device),
                "bias": torch.zeros(signal.size, device=device),
                "gate": torch.zeros(1, width, device=device),
                "gate_bias": torch.zeros(1, device=device),
            }
        )
        self.parameters: Mapping[str, nn.Parameter] = {
            name: p for name, p in self.model.probe.items() if name not in untouched
        }

    def reader(self, name: str) -> Read:
        return self._read

    def _read(self, batch: Batch, at: Positions, tokens: Tensor | None = None) -> Tensor:
        assert tokens is None
        probe, real = self.model.probe, batch.attention_mask[..., None].float()
        features = self._features(batch)
        scores = nn.functional.linear(features, probe["weight"], probe["bias"])
        gates = nn.functional.linear(features, probe["gate"], probe["gate_bias"]).sigmoid() * real
        pooled = (gates * scores).cumsum(1) / gates.cumsum(1).clamp_min(1e-6)
        one = self.signal.kind == "value" and self.signal.size == 1
        return pooled[at].squeeze(-1) if one else pooled[at]

    def _features(self, batch: Batch) -> Tensor:
        """[rows, tokens, width], without a graph."""
        found: list[Tensor] = []
        with torch.no_grad(), self._tapped(found):
            self.model.get_submodule(self.shape.family.decoder)(
                input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False
            )
            return torch.cat([f * f.square().mean(-1, True).add(1e-6).rsqrt() for f in found], -1)

    @contextmanager
    def _tapped(self, found: list[Tensor]) -> Iterator[None]:
        """What passes the taps meanwhile, in fp32."""

        def after(module: nn.Module, inputs: Any, output: Any) -> None:
            found.append((output[0] if isinstance(output, tuple) else output).float())

        def before(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            found.append(inputs[0].float())

        family, hooks = self.shape.family, []
        for layer in self.model.get_submodule(family.layers).children():
            if self.reads == "states":
                hooks.append(layer.register_forward_hook(after))
            else:
                for end in (family.attention.end, family.ffn.end):
                    hooks.append(layer.get_submodule(end).register_forward_pre_hook(before))
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def write(self, records: Mapping[str, TrainingRecord]) -> None:
        told = {"reads": self.reads, "signal": self.signal.model_dump_json()}
        write_probe(self.folder / PROBE, dict(self.model.probe.items()), told, records)


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
