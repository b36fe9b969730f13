"""A LoRA reward model: low-rank updates of a frozen copy of the base, by peft."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from otter_cli.core.seeds import derive_seed, seed_everything
from otter_cli.model.load import load_base
from otter_cli.signals import SignalConfig
from otter_cli.training.separate import SeparateTrainee


class LoraTrainee(SeparateTrainee):
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
