"""A labeller of texts: Detoxify, a classifier, a reward model, or a trained graft's signal."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from otter_cli.checkpoint.listing import MANIFEST
from otter_cli.core.errors import OtterError
from otter_cli.core.suggest import label_index
from otter_cli.scorers.detoxify import load_detoxify

# One number a text, in their order. Of a `ChatText`, one that reads tokens reads its ids.
Labeller = Callable[[Sequence[str]], list[float]]


def load_labeller(folder: Path, label: str | None, *, eos: bool, device: str) -> Labeller:
    """`label`: which of a classifier's probabilities, by default the first; of a graft the signal,
    by default `reward`. `eos`: whether what reads tokens is given texts that have ended.

    Raises OtterError where `folder` gives no such number."""
    if any(folder.glob("*.ckpt")):
        return _detoxify(folder, label, device)
    if (folder / MANIFEST).is_file() or _labels_of(folder) == 1:
        return _values(folder, label or "reward", eos, device)
    return _classifier(folder, label, device)


def _detoxify(folder: Path, label: str | None, device: str) -> Labeller:
    detoxify = load_detoxify(folder, device)
    names = detoxify.class_names
    column = names[label_index(label, names, f"the labeller {folder}")]
    # Detoxify gives a bare number for a list of one.
    return lambda texts: [float(p) for p in _listed(detoxify.predict(list(texts))[column])]


def _listed(predicted: float | Sequence[float]) -> Sequence[float]:
    return predicted if isinstance(predicted, Sequence) else [predicted]


def _values(folder: Path, signal: str, eos: bool, device: str) -> Labeller:
    from otter_cli.data.datasets import pad
    from otter_cli.data.encoding import Encoder
    from otter_cli.model.pretrained import load_tokenizer
    from otter_cli.training.objectives.objective import last_tokens
    from otter_cli.training.teacher import teacher_values

    tokenizer = load_tokenizer(folder)
    # A continuation may end at once.
    encode = Encoder(tokenizer, _positions(folder), eos=eos, empty=True)

    def label(texts: Sequence[str]) -> list[float]:
        encoded = encode(texts)
        batch = pad(encoded.ids, encode.pad_id, encoded.lengths).to(device)
        found: list[float] = teacher_values(folder, signal, batch)[last_tokens(batch)].tolist()
        return found

    return label


def check_reads_dialogues(labeller: Path, folder: Path) -> None:
    """Raises OtterError where a labeller reads other tokens than the base of `folder` writes."""
    from otter_cli.model.pretrained import load_tokenizer

    reads_tokens = (labeller / MANIFEST).is_file() or (
        not any(labeller.glob("*.ckpt")) and _labels_of(labeller) == 1
    )
    if reads_tokens and _vocabulary(load_tokenizer(labeller)) != _vocabulary(
        load_tokenizer(folder)
    ):
        raise OtterError(
            f"the labeller {labeller} has another vocabulary than the base, and cannot read its "
            "dialogues",
            hint="reads: continuation, or a labeller of the same base",
        )


def _vocabulary(tokenizer: Any) -> dict[str, int]:
    vocabulary: dict[str, int] = tokenizer.get_vocab()
    return vocabulary


def _classifier(folder: Path, label: str | None, device: str) -> Labeller:
    names, probabilities = classifier(folder, device)
    column = label_index(label, names, f"the labeller {folder}")
    return lambda texts: [row[column] for row in probabilities(texts)]


def classifier(
    folder: Path, device: str
) -> tuple[list[str], Callable[[Sequence[str]], list[list[float]]]]:
    """The classes of a stock classifier, and what gives their probabilities, a row a text. Raises
    OtterError where its head is missing."""
    import torch

    from otter_cli.model.pretrained import load_tokenizer
    from otter_cli.scorers.load import load_classifier

    model = load_classifier(folder, device=device)
    tokenizer = load_tokenizer(folder)
    names = [str(model.config.id2label[i]) for i in range(model.config.num_labels)]
    several = model.config.problem_type == "multi_label_classification"

    def probabilities(texts: Sequence[str]) -> list[list[float]]:
        inputs = tokenizer(list(texts), padding=True, truncation=True, return_tensors="pt")
        with torch.inference_mode():
            logits = model(**inputs.to(device)).logits.float()
        shares = logits.sigmoid() if several else logits.softmax(-1)
        found: list[list[float]] = shares.tolist()
        return found

    return names, probabilities


def _labels_of(folder: Path) -> int:
    from otter_cli.model.pretrained import load_config

    return int(load_config(folder).num_labels)


def _positions(folder: Path) -> int:
    from otter_cli.model.pretrained import load_config

    return int(getattr(load_config(folder), "max_position_embeddings", 1 << 20))
