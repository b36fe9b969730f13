"""A separate model: a full copy of the base, or its first layers, with a head.

It is written as a stock sequence classifier of transformers."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
from torch import Tensor, nn

from otter_cli.checkpoint.folder import Checkpoint
from otter_cli.checkpoint.link_or_copy import place_files
from otter_cli.checkpoint.safetensors_writer import TensorSpec, write_sharded
from otter_cli.core.atomic import staged_folder, write_json
from otter_cli.core.errors import OtterError
from otter_cli.data.batches import Positions
from otter_cli.families.shape import base_shape
from otter_cli.graft.manifest import TrainingRecord
from otter_cli.scorers.load import load_classifier
from otter_cli.signals.config import SignalConfig
from otter_cli.training.objectives.objective import ReadSignal
from otter_cli.training.trainable import KLFree

if TYPE_CHECKING:
    from otter_cli.data.datasets import Batch


def check_scores_texts(what: str, signal: SignalConfig) -> None:
    """Raises OtterError where a signal is no number of a text."""
    if signal.kind not in ("value", "classes"):
        raise OtterError(
            f"{what} cannot give signal {signal.name!r} of kind {signal.kind}",
            hint="it scores whole texts; name another with --signal, or take another control: "
            "language-model for action values, wide for future tokens",
        )


HEAD_WEIGHT = "score.weight"
TRAINING_RECORD_FILE = "otter.training.json"
# Of the base and no other: a classifier has weights and a configuration of its own.
_REPLACED_FILES = {"generation_config.json", "config.json"}


class SeparateTrainable(KLFree):
    """All weights of an AutoModelForSequenceClassification, in fp32, or some of them."""

    gradient_free: frozenset[str] = frozenset()

    def __init__(self, folder: Path, signal: SignalConfig, device: str = "cpu") -> None:
        self.folder, self.signal = folder, signal
        self.signals: Mapping[str, SignalConfig] = {signal.name: signal}
        model = load_classifier(
            folder, device=device, dtype=torch.float32, what="the separate model"
        )
        self.model: Any = model
        self.parameters: Mapping[str, nn.Parameter] = dict(model.named_parameters())

    def train_only(self, trained: Callable[[str], bool]) -> Self:
        """Freezes the other weights: below the lowest trained one there is no backward pass."""
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(trained(name))
        self.parameters = {n: p for n, p in self.model.named_parameters() if p.requires_grad}
        return self

    def weights(self) -> dict[str, Tensor]:
        """All that the folder is to hold."""
        return {name: p.detach() for name, p in self.model.named_parameters()}

    def reader(self, name: str) -> ReadSignal:
        return self._read

    def _read(self, batch: Batch, at: Positions, tokens: Tensor | None = None) -> Tensor:
        # No signal that a separate model can give is one of tokens.
        assert tokens is None
        self.model.train(torch.is_grad_enabled())
        out = self.model.base_model(
            input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False
        )
        scores: Tensor = self.model.score(out.last_hidden_state[at])
        return scores.squeeze(-1) if self.signal.kind == "value" else scores

    def write(self, records: Mapping[str, TrainingRecord]) -> None:
        values = {name: tensor.cpu().numpy() for name, tensor in self.weights().items()}
        _write_weights(self.folder, values)
        write_json(
            self.folder / TRAINING_RECORD_FILE,
            {name: record.model_dump(mode="json") for name, record in records.items()},
        )


def create_separate(
    source: Path, to: Path, signal: SignalConfig, layers: int | None = None
) -> None:
    """Writes the copy with a head of zeros: config.json edited, tokenizer files byte for byte. Of a
    small one the first `layers` layers.

    Raises OtterError where a signal is no number of a text.
    """
    check_scores_texts("a separate model", signal)
    base = Checkpoint.open(source)
    shape = base_shape(base.config)
    head = shape.family.head_weight
    depth = shape.layers if layers is None else min(layers, shape.layers)
    dropped = tuple(f"{shape.family.layers}.{i}." for i in range(depth, shape.layers))
    values = {
        name: base.read(name)
        for name in base.tensors
        if name != head and not name.startswith(dropped)
    }
    values[HEAD_WEIGHT] = np.zeros((signal.size, shape.hidden), np.float32)
    with staged_folder(to, sources=[source]) as staging:
        kept = [f for f in base.files if f not in _REPLACED_FILES and ".safetensors" not in f]
        place_files(source, kept, staging, mode="copy")
        config = classifier_config(base.config, shape.family.architecture, signal)
        config |= _depth_changes(config, depth)
        (staging / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        _write_weights(staging, values)


def classifier_config(
    config: Mapping[str, Any], architecture: str, signal: SignalConfig
) -> dict[str, Any]:
    """The base's configuration with only that changed which makes it a classifier's."""
    labels = signal.labels or (signal.name,)
    changed = {
        "architectures": [architecture.replace("CausalLM", "SequenceClassification")],
        "id2label": {str(i): label for i, label in enumerate(labels)},
        "label2id": {label: i for i, label in enumerate(labels)},
        "problem_type": "regression" if signal.kind == "value" else "multi_label_classification",
        "pad_token_id": _pad_id(config),
        "dtype": "float32",
    }
    return {k: v for k, v in config.items() if k != "torch_dtype"} | changed


def _depth_changes(config: Mapping[str, Any], depth: int) -> dict[str, Any]:
    """What a configuration says of its layers, for the first `depth` of them."""
    counts = {key: depth for key in ("num_hidden_layers", "n_layer") if key in config}
    kinds = config.get("layer_types")
    return {**counts, "layer_types": kinds[:depth]} if isinstance(kinds, list) else counts


def _pad_id(config: Mapping[str, Any]) -> int | None:
    """The stock class reads the last token that is no padding, and EOS must not count as such."""
    eos = config.get("eos_token_id")
    ends = eos if isinstance(eos, list) else [eos]
    candidates = [config.get("pad_token_id"), config.get("bos_token_id")]
    return next((i for i in candidates if i is not None and i not in ends), None)


def _write_weights(folder: Path, values: Mapping[str, np.ndarray]) -> None:
    specs = {name: TensorSpec("F32", tuple(value.shape)) for name, value in values.items()}
    write_sharded(folder, "model", specs, values.__getitem__, {"format": "pt"})
