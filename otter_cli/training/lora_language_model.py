"""A language model beside the base, for signals of action values: low-rank updates, by peft."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from otter_cli.checkpoint.folder import Checkpoint
from otter_cli.core.atomic import write_bytes, write_json
from otter_cli.core.errors import OtterError
from otter_cli.core.seeds import derive_seed, seed_everything
from otter_cli.core.small_files import OWN_BYTES, read_small
from otter_cli.families import base_shape
from otter_cli.insertion import TrainingRecord
from otter_cli.model.load import load_base
from otter_cli.model.unembedding import FrozenHead
from otter_cli.signals import SignalConfig
from otter_cli.training.objectives import Positions, Read
from otter_cli.training.separate import RECORD
from otter_cli.training.trainee import Driftless

if TYPE_CHECKING:
    from otter_cli.data.datasets import Batch


class LoraLanguageModelTrainee(Driftless):
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

    def reader(self, name: str) -> Read:
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
                write_bytes(self.folder / path.name, read_small(path, limit=OWN_BYTES))
        told = {name: record.model_dump(mode="json") for name, record in records.items()}
        write_json(self.folder / RECORD, told)
