"""Labels from a model's folder: one number a text, or one at every prefix of a text.

The folder holds Detoxify, a classifier, a reward model or a trained graft. Models load when they
are first used, so recipes are read without torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from otter_cli.checkpoint.folder import MANIFEST
from otter_cli.core.errors import OtterError, label_index
from otter_cli.scorers.detoxify import load_detoxify

if TYPE_CHECKING:
    from torch import Tensor

    from otter_cli.data.datasets import Batch
    from otter_cli.model.otter import OtterForCausalLM


_PrefixValues = Callable[["Batch"], "Tensor"]


def prefix_values(folder: Path, signal: str, batch: Batch) -> Tensor:
    """[rows, tokens], without a graph. Raises OtterError where `folder` teaches no values."""
    import torch

    with torch.no_grad():
        return _load_prefix_values(folder, signal, str(batch.input_ids.device))(batch)


@lru_cache(maxsize=1)
def _load_prefix_values(folder: Path, signal: str, device: str) -> _PrefixValues:
    from otter_cli.checkpoint.folder import MANIFEST

    grafted = (folder / MANIFEST).is_file()
    return (
        _graft_values(folder, signal, device) if grafted else _reward_model_values(folder, device)
    )


@lru_cache(maxsize=1)
def _load_graft(folder: Path, device: str) -> OtterForCausalLM:
    """Loaded once, however many of its signals teach in turns."""
    from otter_cli.model.otter import OtterForCausalLM

    return OtterForCausalLM.from_pretrained(folder, device=device)


def _graft_values(folder: Path, signal: str, device: str) -> _PrefixValues:
    model = _load_graft(folder, device)
    config = model.signal_configs.get(signal)
    if config is None or config.kind != "value" or config.size != 1:
        raise OtterError(
            f"{folder} has no signal {signal!r} of one value to teach with",
            hint="name one with teacher_signal",
        )

    def values(batch: Batch) -> Tensor:
        out = model(
            batch.input_ids,
            attention_mask=batch.attention_mask,
            signals=(signal,),
            logits=False,
            use_cache=False,
        )
        return out.signals[signal].float()

    return values


def _reward_model_values(folder: Path, device: str) -> _PrefixValues:
    from otter_cli.scorers.load import load_reward_model

    model = load_reward_model(folder, device=device)

    def values(batch: Batch) -> Tensor:
        out = model.base_model(
            input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False
        )
        scores: Tensor = model.score(out.last_hidden_state).squeeze(-1).float()
        return scores

    return values


# One number a text, in their order. Of a `ChatText`, one that reads tokens reads its ids.
Labeller = Callable[[Sequence[str]], list[float]]


def load_labeller(folder: Path, label: str | None, *, eos: bool, device: str) -> Labeller:
    """`label`: which of a classifier's probabilities, by default the first; of a graft the signal,
    by default `reward`. `eos`: whether what reads tokens is given texts that have ended.

    Raises OtterError where `folder` gives no such number."""
    if any(folder.glob("*.ckpt")):
        return _detoxify_labeller(folder, label, device)
    if (folder / MANIFEST).is_file() or _label_count(folder) == 1:
        return _value_labeller(folder, label or "reward", eos, device)
    return _classifier_labeller(folder, label, device)


def _detoxify_labeller(folder: Path, label: str | None, device: str) -> Labeller:
    detoxify = load_detoxify(folder, device)
    names = detoxify.class_names
    column = names[label_index(label, names, f"the labeller {folder}")]
    # Detoxify gives a bare number for a list of one.
    return lambda texts: [float(p) for p in _as_list(detoxify.predict(list(texts))[column])]


def _as_list(predicted: float | Sequence[float]) -> Sequence[float]:
    return predicted if isinstance(predicted, Sequence) else [predicted]


def _value_labeller(folder: Path, signal: str, eos: bool, device: str) -> Labeller:
    from otter_cli.data.batches import last_tokens
    from otter_cli.data.datasets import pad_batch
    from otter_cli.data.encoding import Encoder
    from otter_cli.model.load import load_tokenizer

    tokenizer = load_tokenizer(folder)
    # A continuation may end at once.
    encode = Encoder(tokenizer, _max_positions(folder), eos=eos, allow_empty=True)

    def label(texts: Sequence[str]) -> list[float]:
        encoded = encode(texts)
        batch = pad_batch(encoded.ids, encode.pad_id, encoded.lengths).to(device)
        found: list[float] = prefix_values(folder, signal, batch)[last_tokens(batch)].tolist()
        return found

    return label


def check_reads_dialogues(labeller: Path, folder: Path) -> None:
    """Raises OtterError where a labeller reads other tokens than the base of `folder` writes."""
    from otter_cli.model.load import load_tokenizer

    reads_tokens = (labeller / MANIFEST).is_file() or (
        not any(labeller.glob("*.ckpt")) and _label_count(labeller) == 1
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


def _classifier_labeller(folder: Path, label: str | None, device: str) -> Labeller:
    names, probabilities = class_probabilities(folder, device)
    column = label_index(label, names, f"the labeller {folder}")
    return lambda texts: [row[column] for row in probabilities(texts)]


def class_probabilities(
    folder: Path, device: str
) -> tuple[list[str], Callable[[Sequence[str]], list[list[float]]]]:
    """The classes of a stock classifier, and what gives their probabilities, a row a text. Raises
    OtterError where its head is missing."""
    import torch

    from otter_cli.model.load import load_tokenizer
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


def _label_count(folder: Path) -> int:
    from otter_cli.model.load import load_config

    return int(load_config(folder).num_labels)


def _max_positions(folder: Path) -> int:
    from otter_cli.model.load import load_config

    return int(getattr(load_config(folder), "max_position_embeddings", 1 << 20))
