"""A tiny toxicity classifier for the synthetic world, in Detoxify's checkpoint format.

The demo trains it on each run, because the checkpoint is a pickle and the package ships no pickle.
"""

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from tokenizers import Tokenizer as BareTokenizer
from tokenizers import models, normalizers, pre_tokenizers, trainers
from transformers import BertConfig, BertForSequenceClassification, BertTokenizer

from otter_cli.core.atomic import staged_folder, write_json, write_text
from otter_cli.core.console import progress
from otter_cli.core.intervals import auroc
from otter_cli.core.process import derive_seed, seed_everything
from otter_cli.demo.world import World, split_exchange, toxicity_labels
from otter_cli.model.load import load_tokenizer

CLASSES: Final = ("toxicity", "insult", "threat")
CHECKPOINT: Final = "toxicity.ckpt"
MAX_LENGTH: Final = 256
ROWS_PER_STEP: Final = 48
LEARNING_RATE: Final = 3e-3

_SPECIAL: Final = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def train_toxicity_classifier(out: Path, *, seed: int, steps: int = 300) -> dict[str, float]:
    """Writes a folder that `Detoxify` loads. Returns the held-out AUC of each class.

    The classifier sees whole answers and fragments. Raises OtterError if `out` exists.
    """
    rng = random.Random(derive_seed("toxicity", seed))
    seed_everything(derive_seed("toxicity", seed, "weights"))
    texts = [
        piece
        for text in World(seed, "train").texts(5_000)
        for piece in _answer_and_fragments(text, rng)
    ]
    with staged_folder(out, sources=()) as folder:
        tokenizer = _write_tokenizer(folder, texts)
        model = BertForSequenceClassification(_config(len(tokenizer)))
        _train(model, tokenizer, _batches(texts, rng), steps)
        model.config.save_pretrained(folder)
        torch.save(_checkpoint(model), folder / CHECKPOINT)
        held_out = [
            p for text in World(seed, "test").texts(500) for p in _answer_and_fragments(text, rng)
        ]
        auc = _held_out_auc(model, tokenizer, held_out)
        write_json(folder / "PROVENANCE.json", {"seed": seed, "steps": steps, "auc": auc})
    return auc


def _answer_and_fragments(text: str, rng: random.Random) -> list[str]:
    """An answer, and two fragments of 3 to 20 words, as short as a benchmark's continuations."""
    _, reply = split_exchange(text)
    words = reply.split()
    starts = [0, rng.randrange(len(words) // 2)]
    fragments = [" ".join(words[start : start + rng.randint(3, 20)]) for start in starts]
    return [reply.strip(), *fragments]


def _write_tokenizer(folder: Path, texts: list[str]) -> BertTokenizer:
    bare = BareTokenizer(models.WordPiece(unk_token="[UNK]"))
    bare.normalizer = normalizers.BertNormalizer(lowercase=True)
    bare.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(
        vocab_size=1_000, special_tokens=list(_SPECIAL), show_progress=False
    )
    bare.train_from_iterator(texts, trainer)
    vocabulary = sorted(bare.get_vocab().items(), key=lambda item: item[1])
    write_text(folder / "vocab.txt", "".join(f"{token}\n" for token, _ in vocabulary))
    settings = {
        "tokenizer_class": "BertTokenizer", "do_lower_case": True, "model_max_length": MAX_LENGTH,
    }  # fmt: skip
    write_json(folder / "tokenizer_config.json", settings)
    tokenizer: BertTokenizer = load_tokenizer(folder, BertTokenizer)
    return tokenizer


def _config(vocabulary: int) -> BertConfig:
    return BertConfig(
        vocab_size=vocabulary, hidden_size=64, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=128, max_position_embeddings=MAX_LENGTH, num_labels=len(CLASSES),
        problem_type="multi_label_classification", hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0, initializer_range=0.1,
    )  # fmt: skip


def _train(
    model: BertForSequenceClassification,
    tokenizer: BertTokenizer,
    batches: Iterator[list[str]],
    steps: int,
) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps)
    model.train()
    with progress(steps, "training the toxicity classifier") as advance:
        for _ in range(steps):
            batch = next(batches)
            loss = model(**_encode(tokenizer, batch), labels=_labels(batch)).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            advance(1)
    model.eval()


def _batches(texts: list[str], rng: random.Random) -> Iterator[list[str]]:
    """Endless batches in random order. Texts of a batch have similar lengths, which halves the
    time of a step."""
    ordered = sorted(texts, key=len)
    starts = list(range(0, len(ordered), ROWS_PER_STEP))
    while True:
        rng.shuffle(starts)
        for start in starts:
            yield ordered[start : start + ROWS_PER_STEP]


def _encode(tokenizer: BertTokenizer, texts: list[str]) -> Any:
    return tokenizer(texts, return_tensors="pt", padding=True, truncation=True)


def _labels(texts: list[str]) -> torch.Tensor:
    rows = [toxicity_labels(text) for text in texts]
    return torch.tensor([[float(row[name]) for name in CLASSES] for row in rows])


def _checkpoint(model: BertForSequenceClassification) -> dict[str, Any]:
    arch = {
        # Detoxify resolves this name first. The loader replaces it with the folder's path.
        "model_type": ".",
        "model_name": "BertForSequenceClassification",
        "tokenizer_name": "BertTokenizer",
        "num_classes": len(CLASSES),
    }
    config = {"arch": {"args": arch}, "dataset": {"args": {"classes": list(CLASSES)}}}
    return {"config": config, "state_dict": model.state_dict()}


@torch.no_grad()
def _held_out_auc(
    model: BertForSequenceClassification, tokenizer: BertTokenizer, texts: list[str]
) -> dict[str, float]:
    chunks = [texts[i : i + ROWS_PER_STEP] for i in range(0, len(texts), ROWS_PER_STEP)]
    scores = torch.cat([model(**_encode(tokenizer, chunk)).logits for chunk in chunks]).numpy()
    labels, once = _labels(texts).numpy(), np.ones((1, len(texts)))
    return {
        name: float(auroc(scores[:, i], labels[:, i])(once)[0]) for i, name in enumerate(CLASSES)
    }
