"""Tiny random models for benchmarks: a graft, its task head, reward models and a classifier."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tests.support.grafts import random_graft

CLASSES = ("toxicity", "insult")
PROMPTS = ("Once upon a time", "The cat sat on", "abcabcabcabcabc", "Who is there?")


@dataclass(frozen=True)
class BenchmarkModels:
    """The folders of the models, and a file of prompts."""

    graft: Path
    head: Path
    reward_model: Path
    gold: Path
    detoxify: Path
    prompts: Path


def write_benchmark_models(base: Path, folder: Path) -> BenchmarkModels:
    (folder / "prompts.txt").write_text("\n".join(PROMPTS))
    return BenchmarkModels(
        graft=random_graft(base, folder / "graft", hidden=8, heads=2, ffn=16, scale=0.2),
        head=random_graft(base, folder / "head", hidden=0, seed=1),
        reward_model=write_reward_model(base, folder / "reward-model", seed=1),
        gold=write_reward_model(base, folder / "gold", seed=2),
        detoxify=write_classifier(folder / "detoxify"),
        prompts=folder / "prompts.txt",
    )


def write_reward_model(base: Path, folder: Path, *, seed: int, **options: Any) -> Path:
    """The base with a random head, as a stock sequence classifier."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    torch.manual_seed(seed)
    model = AutoModelForSequenceClassification.from_pretrained(base, **{"num_labels": 1, **options})
    torch.nn.init.normal_(model.score.weight)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(base).save_pretrained(folder)
    return folder


def write_classifier(folder: Path) -> Path:
    """An untrained BERT of one layer and 64 positions in Detoxify's checkpoint format."""
    from transformers import BertConfig, BertForSequenceClassification, BertTokenizer

    folder.mkdir()
    letters = [chr(c) for c in range(33, 127)]
    pieces = [*letters, *(f"##{letter}" for letter in letters)]
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *pieces]
    (folder / "vocab.txt").write_text("\n".join(words))
    BertTokenizer.from_pretrained(folder, model_max_length=64).save_pretrained(folder)
    config = BertConfig(
        vocab_size=len(words), hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=16, max_position_embeddings=64, num_labels=len(CLASSES),
    )  # fmt: skip
    torch.manual_seed(0)
    model = BertForSequenceClassification(config)
    torch.nn.init.normal_(model.classifier.weight, std=2.0)
    config.save_pretrained(folder)
    arch = {"model_type": ".", "model_name": "BertForSequenceClassification",
            "tokenizer_name": "BertTokenizer", "num_classes": len(CLASSES)}  # fmt: skip
    recorded = {"arch": {"args": arch}, "dataset": {"args": {"classes": list(CLASSES)}}}
    torch.save({"config": recorded, "state_dict": model.state_dict()}, folder / "tiny.ckpt")
    return folder
