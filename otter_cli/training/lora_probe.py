"""A LoRA probe inside the generator: its scores cost nothing, its text is no longer the base's."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from otter_cli.checkpoint.folder import Checkpoint
from otter_cli.core.seeds import derive_seed, seed_everything
from otter_cli.families import base_shape
from otter_cli.insertion import TrainingRecord
from otter_cli.model.load import load_base
from otter_cli.model.unembedding import FrozenHead
from otter_cli.signals import SignalConfig
from otter_cli.training.objectives import Positions, Read
from otter_cli.training.probe import write_probe
from otter_cli.training.targets import check_scores_texts
from otter_cli.training.trainee import SeparateRows

if TYPE_CHECKING:
    from otter_cli.data.datasets import Batch
    from otter_cli.training.controls import LoraProbeSettings

LORA_PROBE = "lora-probe.safetensors"


class LoraProbeTrainee(SeparateRows):
    """Low-rank updates of every linear layer and a linear head on the final state; the loss adds
    the KL of the base's distribution to the updated one's (METHOD, 4)."""

    gradient_free: frozenset[str] = frozenset()

    def __init__(
        self,
        source: Path,
        to: Path,
        signal: SignalConfig,
        settings: LoraProbeSettings,
        seed: int,
        device: str,
    ) -> None:
        from peft import LoraConfig, inject_adapter_in_model

        check_scores_texts("a LoRA probe", signal)
        self.folder, self.signal, self.drift_weight = to, signal, settings.kl
        self.signals: Mapping[str, SignalConfig] = {signal.name: signal}
        self.shape = base_shape(Checkpoint.open(source).config)
        self.model: Any = load_base(source, dtype=torch.float32).eval().requires_grad_(False)
        seed_everything(derive_seed("lora", seed))
        decoder = self.model.get_submodule(self.shape.family.decoder)
        config = LoraConfig(
            r=settings.rank, lora_alpha=2 * settings.rank, target_modules="all-linear"
        )
        inject_adapter_in_model(config, decoder)
        self.model.probe = nn.Parameter(torch.zeros(signal.size, self.shape.hidden))
        self.model.to(device)
        self.head = FrozenHead(self.model, self.shape)
        self.parameters: Mapping[str, nn.Parameter] = {
            name: p for name, p in self.model.named_parameters() if p.requires_grad
        }
        self.batch: Batch | None = None

    def reader(self, name: str) -> Read:
        self.batch = None
        return self._read

    def _read(self, batch: Batch, at: Positions, tokens: Tensor | None = None) -> Tensor:
        assert tokens is None
        scores = F.linear(self._states(batch)[at], self.model.probe)
        one = self.signal.kind == "value" and self.signal.size == 1
        return scores.squeeze(-1) if one else scores

    def drift(self, batch: Batch) -> Tensor:
        logits = self.head.logits(self._states(batch))
        with torch.no_grad():
            self._scale(0.0)
            base = self.head.logits(self._run(batch)).log_softmax(-1)
            self._scale(1.0)
        each = F.kl_div(logits.log_softmax(-1), base, log_target=True, reduction="none").sum(-1)
        return (each * batch.attention_mask).sum(1) / batch.attention_mask.sum(1)

    def _states(self, batch: Batch) -> Tensor:
        """y of the updated generator, once for a batch."""
        if self.batch is not batch:
            self.batch, self.states = batch, self._run(batch)
        return self.states

    def _run(self, batch: Batch) -> Tensor:
        decoder = self.model.get_submodule(self.shape.family.decoder)
        out = decoder(
            input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False
        )
        states: Tensor = out.last_hidden_state
        return states

    def _scale(self, factor: float) -> None:
        """0: the base as it was."""
        from peft.tuners.lora import LoraLayer

        for module in self.model.modules():
            if isinstance(module, LoraLayer):
                module.set_scale("default", factor)

    def write(self, records: Mapping[str, TrainingRecord]) -> None:
        told = {"signal": self.signal.model_dump_json()}
        write_probe(self.folder / LORA_PROBE, self.parameters, told, records)
