"""The tiny base's own tokenizer: byte-level BPE, so every text comes back as it went in."""

import json
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from otter_cli.core.atomic import write_json, write_text

VOCABULARY = 512
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
BOS, EOS, PAD = range(3)


def train_tokenizer(texts: Iterable[str]) -> Tokenizer:
    """A vocabulary of 3 special tokens, 256 bytes and 253 merges; encoding puts <s> first."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(SPECIAL.values()),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", BOS)]
    )
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, folder: Path, max_length: int) -> None:
    """`tokenizer.json` and `tokenizer_config.json`, as stock transformers reads them."""
    # One line instead of indented JSON: a third of the size, and the base must stay small.
    write_text(folder / "tokenizer.json", json.dumps(json.loads(tokenizer.to_str())))
    settings = {
        **SPECIAL,
        "model_max_length": max_length,
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_input_names": ["input_ids", "attention_mask"],
    }
    write_json(folder / "tokenizer_config.json", settings)
