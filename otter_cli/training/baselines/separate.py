"""A separate model: a full copy of the base, or its first layers, with a head.

It is written as a stock sequence classifier of transformers. The baselines `separate`, `small` and
`branch` train all of it or some of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

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
from otter_cli.training.trainable import BaselineTrainable

if TYPE_CHECKING:
    from otter_cli.data.datasets import Batch
    from otter_cli.training.recipe import Recipe

HEAD_WEIGHT = "score.weight"
TRAINING_RECORD_FILE = "otter.training.json"
# Files of the base that the classifier replaces or does without.
_REPLACED_FILES = {"generation_config.json", "config.json"}


def check_scores_texts(what: str, signal: SignalConfig) -> None:
    """Raises OtterError where a signal is not a score of a text."""
    if signal.kind not in ("value", "classes"):
        raise OtterError(
            f"{what} cannot give signal {signal.name!r} of kind {signal.kind}",
            hint="it scores whole texts; name another with --signal, or take another control: "
            "language-model for action values, wide for future tokens",
        )


class SeparateTrainable(BaselineTrainable):
    """All weights of an AutoModelForSequenceClassification in fp32, or some with `train_only`."""

    dropout = True

    def __init__(self, folder: Path, signal: SignalConfig, device: str = "cpu") -> None:
        model = _load_classifier(folder, device)
        super().__init__(folder, signal, model, model.base_model)
        self.train_only(lambda name: True)

    def __call__(self, batch: Batch, at: Positions, tokens: Tensor | None = None) -> Tensor:
        return self.squeeze_single_value(self.model.score(self.final_states(batch)[at]))

    def write(self, records: Mapping[str, TrainingRecord]) -> None:
        weights = {name: p.detach() for name, p in self.model.named_parameters()}
        write_separate(self.folder, weights, records)


def make_separate(
    source: Path, to: Path, signal: SignalConfig, recipe: Recipe, device: str
) -> SeparateTrainable:
    """The baseline `separate`: all weights are trained."""
    if not to.exists():
        create_separate(source, to, signal)
    return SeparateTrainable(to, signal, device)


def make_small(
    source: Path, to: Path, signal: SignalConfig, recipe: Recipe, device: str
) -> SeparateTrainable:
    """The baseline `small`: the first layers alone, all of them trained."""
    if not to.exists():
        create_separate(source, to, signal, recipe.baselines.small.layers)
    return SeparateTrainable(to, signal, device)


def make_branch(
    source: Path, to: Path, signal: SignalConfig, recipe: Recipe, device: str
) -> SeparateTrainable:
    """The baseline `branch`: the last layer, the final norm and the head are trained."""
    trainable = make_separate(source, to, signal, recipe, device)
    shape = base_shape(Checkpoint.open(source).config)
    last = f"{shape.family.layers}.{shape.layers - 1}."
    trained = (last, f"{shape.family.final_norm}.", HEAD_WEIGHT)
    trainable.train_only(lambda name: name.startswith(trained))
    return trainable


def load_separate(source: Path, to: Path, signal: SignalConfig, device: str) -> Any:
    """The classifier in `to`, which is created where it does not exist."""
    if not to.exists():
        create_separate(source, to, signal)
    return _load_classifier(to, device)


def _load_classifier(folder: Path, device: str) -> Any:
    return load_classifier(folder, device=device, dtype=torch.float32, what="the separate model")


def create_separate(
    source: Path, to: Path, signal: SignalConfig, layers: int | None = None
) -> None:
    """Writes the copy with a head of zeros; with `layers`, of the first layers alone. config.json
    is edited, tokenizer files are copied byte for byte.

    Raises OtterError where a signal is not a score of a text.
    """
    check_scores_texts("a separate model", signal)
    base = Checkpoint.open(source)
    shape = base_shape(base.config)
    depth = shape.layers if layers is None else min(layers, shape.layers)
    dropped = tuple(f"{shape.family.layers}.{i}." for i in range(depth, shape.layers))
    values = {
        name: base.read(name)
        for name in base.tensors
        if name != shape.family.head_weight and not name.startswith(dropped)
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
    """The base's configuration with the changes that make it a classifier's."""
    labels = signal.labels or (signal.name,)
    changes = {
        "architectures": [architecture.replace("CausalLM", "SequenceClassification")],
        "id2label": {str(i): label for i, label in enumerate(labels)},
        "label2id": {label: i for i, label in enumerate(labels)},
        "problem_type": "regression" if signal.kind == "value" else "multi_label_classification",
        "pad_token_id": _pad_id(config),
        "dtype": "float32",
    }
    return {k: v for k, v in config.items() if k != "torch_dtype"} | changes


def _depth_changes(config: Mapping[str, Any], depth: int) -> dict[str, Any]:
    """The entries about layers, for the first `depth` of them."""
    counts = {key: depth for key in ("num_hidden_layers", "n_layer") if key in config}
    kinds = config.get("layer_types")
    return {**counts, "layer_types": kinds[:depth]} if isinstance(kinds, list) else counts


def _pad_id(config: Mapping[str, Any]) -> int | None:
    """The stock class reads the last token that is not padding, so EOS must not be the padding."""
    eos = config.get("eos_token_id")
    ends = eos if isinstance(eos, list) else [eos]
    candidates = [config.get("pad_token_id"), config.get("bos_token_id")]
    return next((i for i in candidates if i is not None and i not in ends), None)


def write_separate(
    folder: Path, weights: Mapping[str, Tensor], records: Mapping[str, TrainingRecord]
) -> None:
    """Writes trained weights, by the names of the stock classifier, and their training records."""
    _write_weights(folder, {name: tensor.cpu().numpy() for name, tensor in weights.items()})
    write_training_records(folder, records)


def write_training_records(folder: Path, records: Mapping[str, TrainingRecord]) -> None:
    values = {name: record.model_dump(mode="json") for name, record in records.items()}
    write_json(folder / TRAINING_RECORD_FILE, values)


def _write_weights(folder: Path, values: Mapping[str, np.ndarray]) -> None:
    specs = {name: TensorSpec("F32", tuple(value.shape)) for name, value in values.items()}
    write_sharded(folder, "model", specs, values.__getitem__, {"format": "pt"})
