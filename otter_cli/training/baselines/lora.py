"""LoRA by peft: a reward model, a probe inside the generator, and a language model beside it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from otter_cli.checkpoint.folder import Checkpoint
from otter_cli.core.atomic import write_bytes, write_json
from otter_cli.core.errors import OtterError
from otter_cli.core.process import derive_seed, seed_everything
from otter_cli.core.strict_files import MAX_OWN_FILE_BYTES, read_small_file
from otter_cli.data.batches import Positions
from otter_cli.families.shape import base_shape
from otter_cli.graft.manifest import TrainingRecord
from otter_cli.model.lm_head import FrozenHead
from otter_cli.model.load import load_base
from otter_cli.signals.config import SignalConfig
from otter_cli.training.baselines.readouts import write_readout
from otter_cli.training.baselines.separate import (
    TRAINING_RECORD_FILE,
    SeparateTrainable,
    check_scores_texts,
)
from otter_cli.training.objectives.objective import ReadSignal
from otter_cli.training.trainable import KLFree, UnsharedRows

if TYPE_CHECKING:
    from otter_cli.data.datasets import Batch
    from otter_cli.training.recipe import LoraProbeSettings


class LoraClassifierTrainable(SeparateTrainable):
    """Adapters of every linear layer, and the head. The folder holds them merged: a stock
    classifier, as the other separate models are; a run goes on from the base's own weights."""

    def __init__(
        self, source: Path, to: Path, signal: SignalConfig, rank: int, seed: int, device: str
    ) -> None:
        from peft import LoraConfig, inject_adapter_in_model

        super().__init__(to, signal, device)
        # What the folder holds may be merged already.
        self.model.load_state_dict(_base_weights(source, self.model), strict=True)
        seed_everything(derive_seed("lora", seed))
        config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear")
        inject_adapter_in_model(config, self.model.base_model)
        self.train_only(lambda name: "lora_" in name or name == "score.weight")

    def weights(self) -> dict[str, Tensor]:
        from peft.tuners.lora import LoraLayer

        found = dict(self.model.named_parameters())
        merged = {
            name.replace(".base_layer.", "."): value.detach()
            for name, value in found.items()
            if "lora_" not in name
        }
        for name, module in self.model.named_modules():
            if isinstance(module, LoraLayer):
                delta = module.get_delta_weight("default").detach()
                merged[f"{name}.weight"] = merged[f"{name}.weight"] + delta
        return merged


def _base_weights(source: Path, model: torch.nn.Module) -> dict[str, Tensor]:
    """Those of the base in the classifier's names, with a head of zeros."""
    base, own = load_base(source, dtype=torch.float32).state_dict(), model.state_dict()
    head = {"score.weight": torch.zeros_like(own["score.weight"])}
    return {name: base.get(name, tensor) for name, tensor in own.items()} | head


LORA_PROBE_FILE = "lora-probe.safetensors"


class LoraProbeTrainable(UnsharedRows):
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

    def reader(self, name: str) -> ReadSignal:
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
        write_readout(self.folder / LORA_PROBE_FILE, self.parameters, told, records)


class LoraLanguageModelTrainable(KLFree):
    """Its next-token logits are the action values: GenARM's reward model (arXiv 2410.08193), an
    expert of DExperts. The folder is a peft adapter of the graft's base, in peft's own names."""

    gradient_free: frozenset[str] = frozenset()

    def __init__(
        self, source: Path, to: Path, signal: SignalConfig, rank: int, seed: int, device: str
    ) -> None:
        from peft import LoraConfig, get_peft_model

        if signal.kind != "vocabulary":
            raise OtterError(
                f"a language model's logits are action values; signal {signal.name!r} is of kind "
                f"{signal.kind}",
                hint="for scores of texts there are probe, branch, lora, small and separate",
            )
        self.folder, self.signal = to, signal
        self.signals: Mapping[str, SignalConfig] = {signal.name: signal}
        self.shape = base_shape(Checkpoint.open(source).config)
        base: Any = load_base(source, dtype=torch.float32).eval().requires_grad_(False)
        base.name_or_path = str(source.resolve())
        seed_everything(derive_seed("lora", seed))
        config = LoraConfig(
            r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type="CAUSAL_LM"
        )
        self.model: Any = get_peft_model(base, config).to(device)
        self.head = FrozenHead(base, self.shape)
        self.parameters: Mapping[str, nn.Parameter] = {
            name: p for name, p in self.model.named_parameters() if p.requires_grad
        }
        self.batch: Batch | None = None

    def reader(self, name: str) -> ReadSignal:
        self.batch = None
        return self._read

    def _read(self, batch: Batch, at: Positions, tokens: Tensor | None = None) -> Tensor:
        logits = self.head.logits(self._states(batch)[at])
        return logits if tokens is None else logits.gather(-1, tokens)

    def _states(self, batch: Batch) -> Tensor:
        if self.batch is not batch:
            decoder = self.model.base_model.model.get_submodule(self.shape.family.decoder)
            out = decoder(
                input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False
            )
            self.batch, self.states = batch, out.last_hidden_state
        return self.states

    def write(self, records: Mapping[str, TrainingRecord]) -> None:
        self.folder.mkdir(exist_ok=True)
        with TemporaryDirectory() as staging:
            self.model.save_pretrained(staging)
            for path in sorted(Path(staging).glob("adapter_*")):
                write_bytes(
                    self.folder / path.name, read_small_file(path, limit=MAX_OWN_FILE_BYTES)
                )
        told = {name: record.model_dump(mode="json") for name, record in records.items()}
        write_json(self.folder / TRAINING_RECORD_FILE, told)
