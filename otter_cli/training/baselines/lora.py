"""LoRA by peft: a separate reward model, a probe inside the generator, and a language model.

`PeftTrainable` adds the low-rank updates. The three baselines differ in the model that they update,
in what they read of it, and in what they write."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from otter_cli.checkpoint.folder import Checkpoint
from otter_cli.core.atomic import write_bytes
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
    HEAD_WEIGHT,
    check_scores_texts,
    load_separate,
    write_separate,
    write_training_records,
)
from otter_cli.training.trainable import BaselineTrainable

if TYPE_CHECKING:
    from otter_cli.data.datasets import Batch
    from otter_cli.training.recipe import Recipe

LORA_PROBE_FILE = "lora-probe.safetensors"


class PeftTrainable(BaselineTrainable):
    """A model in fp32 with trained low-rank updates of every linear layer of its decoder."""

    # A trained parameter besides the updates.
    head = ""

    def __init__(
        self,
        folder: Path,
        signal: SignalConfig,
        model: Any,
        decoder: nn.Module,
        rank: int,
        seed: int,
        device: str,
        task: str | None = None,
    ) -> None:
        """`task`: the kind of peft model to make, whose adapter peft can save."""
        from peft import LoraConfig, get_peft_model, inject_adapter_in_model

        super().__init__(folder, signal, model, decoder)
        config = LoraConfig(
            r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type=task
        )
        seed_everything(derive_seed("lora", seed))
        if task is None:
            inject_adapter_in_model(config, decoder)
        else:
            self.model = get_peft_model(model, config)
        self.model.to(device)
        self.train_only(lambda name: "lora_" in name or name == self.head)


class LoraClassifierTrainable(PeftTrainable):
    """A separate classifier. The folder holds it with the updates merged, as a stock classifier; a
    resumed run starts from the base's weights again."""

    head = HEAD_WEIGHT
    dropout = True

    def __init__(
        self, source: Path, to: Path, signal: SignalConfig, recipe: Recipe, device: str
    ) -> None:
        model = load_separate(source, to, signal, device)
        # The folder may hold weights with merged updates.
        base, own = load_base(source, dtype=torch.float32).state_dict(), model.state_dict()
        head = {HEAD_WEIGHT: torch.zeros_like(own[HEAD_WEIGHT])}
        weights = {name: base.get(name, tensor) for name, tensor in own.items()} | head
        model.load_state_dict(weights, strict=True)
        rank = recipe.baselines.lora.rank
        super().__init__(to, signal, model, model.base_model, rank, recipe.seed, device)

    def __call__(self, batch: Batch, at: Positions, tokens: Tensor | None = None) -> Tensor:
        return self.squeeze_single_value(self.model.score(self.final_states(batch)[at]))

    def write(self, records: Mapping[str, TrainingRecord]) -> None:
        write_separate(self.folder, self._merged_weights(), records)

    def _merged_weights(self) -> dict[str, Tensor]:
        from peft.tuners.lora import LoraLayer

        merged = {
            name.replace(".base_layer.", "."): parameter.detach()
            for name, parameter in self.model.named_parameters()
            if "lora_" not in name
        }
        for name, module in self.model.named_modules():
            if isinstance(module, LoraLayer):
                update = module.get_delta_weight("default").detach()
                merged[f"{name}.weight"] = merged[f"{name}.weight"] + update
        return merged


class LoraProbeTrainable(PeftTrainable):
    """Updates of the generator itself, and a linear head on its final state. The loss adds the KL
    of the base's distribution to the updated one (docs/method.md, "Comparators")."""

    head = "probe"

    def __init__(
        self, source: Path, to: Path, signal: SignalConfig, recipe: Recipe, device: str
    ) -> None:
        check_scores_texts("a LoRA probe", signal)
        settings = recipe.baselines.lora_probe
        self.kl_weight = settings.kl
        shape = base_shape(Checkpoint.open(source).config)
        base: Any = load_base(source, dtype=torch.float32).eval()
        base.probe = nn.Parameter(torch.zeros(signal.size, shape.hidden))
        decoder = base.get_submodule(shape.family.decoder)
        super().__init__(to, signal, base, decoder, settings.rank, recipe.seed, device)
        self.lm_head = FrozenHead(base, shape)

    def __call__(self, batch: Batch, at: Positions, tokens: Tensor | None = None) -> Tensor:
        scores = F.linear(self.final_states(batch)[at], self.model.probe)
        return self.squeeze_single_value(scores)

    def kl_to_base(self, batch: Batch) -> Tensor:
        """One text at a time: the log-probabilities of a text over the vocabulary are computed
        again in the backward pass. Those of a batch would take more than the model."""
        updated = self.final_states(batch)
        with torch.no_grad():
            self._scale_updates(0.0)
            base = self.run_decoder(batch)
            self._scale_updates(1.0)
        real = batch.attention_mask.bool()
        texts = [
            checkpoint(self._kl, own[mask], other[mask], use_reentrant=False)
            for own, other, mask in zip(updated, base, real, strict=True)
        ]
        return torch.stack(texts)

    def _kl(self, updated: Tensor, base: Tensor) -> Tensor:
        """The mean over tokens, of states [tokens, d]."""
        logs, target = (self.lm_head.logits(y).log_softmax(-1) for y in (updated, base))
        return F.kl_div(logs, target, log_target=True, reduction="none").sum(-1).mean()

    def _scale_updates(self, factor: float) -> None:
        """0 gives the base without its updates, 1 the updated base."""
        from peft.tuners.lora import LoraLayer

        for module in self.model.modules():
            if isinstance(module, LoraLayer):
                module.set_scale("default", factor)

    def write(self, records: Mapping[str, TrainingRecord]) -> None:
        metadata = {"signal": self.signal.model_dump_json()}
        write_readout(self.folder / LORA_PROBE_FILE, self.parameters, metadata, records)


class LoraLanguageModelTrainable(PeftTrainable):
    """A language model whose next-token logits are the action values: GenARM's reward model (arXiv
    2410.08193), or an expert of DExperts. The folder is a peft adapter of the graft's base."""

    def __init__(
        self, source: Path, to: Path, signal: SignalConfig, recipe: Recipe, device: str
    ) -> None:
        if signal.kind != "vocabulary":
            raise OtterError(
                f"a language model's logits are action values; signal {signal.name!r} is of kind "
                f"{signal.kind}",
                hint="for scores of texts there are probe, branch, lora, small and separate",
            )
        shape = base_shape(Checkpoint.open(source).config)
        base: Any = load_base(source, dtype=torch.float32).eval()
        base.name_or_path = str(source.resolve())
        decoder = base.get_submodule(shape.family.decoder)
        rank = recipe.baselines.language_model.rank
        super().__init__(to, signal, base, decoder, rank, recipe.seed, device, "CAUSAL_LM")
        self.lm_head = FrozenHead(base, shape)

    def __call__(self, batch: Batch, at: Positions, tokens: Tensor | None = None) -> Tensor:
        logits = self.lm_head.logits(self.final_states(batch)[at])
        return logits if tokens is None else logits.gather(-1, tokens)

    def write(self, records: Mapping[str, TrainingRecord]) -> None:
        self.folder.mkdir(exist_ok=True)
        with TemporaryDirectory() as staging:
            self.model.save_pretrained(staging)
            for path in sorted(Path(staging).glob("adapter_*")):
                write_bytes(
                    self.folder / path.name, read_small_file(path, limit=MAX_OWN_FILE_BYTES)
                )
        write_training_records(self.folder, records)
