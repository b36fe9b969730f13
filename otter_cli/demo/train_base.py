"""Trains the tiny base that ships with the package: `python -m otter_cli.demo.train_base OUT`.

The base is a Llama of 0.46 M parameters, trained on text of the seeded World, so all figures that
are measured on it are synthetic. Its tokenizer is byte-level BPE, which decodes every text exactly.
"""

import argparse
import json
import math
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from otter_cli.core.atomic import staged_folder, write_json, write_text
from otter_cli.core.console import progress, say
from otter_cli.core.process import derive_seed, seed_everything
from otter_cli.core.provenance import provenance
from otter_cli.demo.world import World

VOCABULARY = 512
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
BOS, EOS, PAD = range(3)


def train_tokenizer(texts: Iterable[str]) -> Tokenizer:
    """A tokenizer of 3 special tokens, 256 bytes and 253 merges. Encoding puts <s> first."""
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
    """Writes `tokenizer.json` and `tokenizer_config.json`, as stock transformers reads them."""
    # JSON on one line has a third of the size of indented JSON, and the base must stay small.
    write_text(folder / "tokenizer.json", json.dumps(json.loads(tokenizer.to_str())))
    settings = {
        **SPECIAL,
        "model_max_length": max_length,
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_input_names": ["input_ids", "attention_mask"],
    }
    write_json(folder / "tokenizer_config.json", settings)


CONTEXT = 256
IGNORED_LABEL = -100
ROWS_PER_STEP = 8
LEARNING_RATE = 4e-3
WARM_UP_STEPS = 50
STEPS, TEXTS = 3_000, 60_000
TOKENIZER_TEXTS = 20_000
COMMAND = ("python", "-m", "otter_cli.demo.train_base", "OUT")

Card = dict[str, Any]


def tiny_config() -> LlamaConfig:
    """A Llama of about 0.46 M parameters, under 2 MB in float32 with its tokenizer."""
    return LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=96, intermediate_size=224, num_hidden_layers=4,
        num_attention_heads=4, num_key_value_heads=2, head_dim=32, tie_word_embeddings=True,
        max_position_embeddings=CONTEXT, rms_norm_eps=1e-5, dtype="float32",
        bos_token_id=BOS, eos_token_id=EOS, pad_token_id=PAD,
    )  # fmt: skip


def pack(documents: list[list[int]]) -> Tensor:
    """Packs whole documents, `<s> ... </s>`, into padded rows: [rows, CONTEXT]."""
    rows: list[list[int]] = [[]]
    for document in documents:
        if len(rows[-1]) + len(document) > CONTEXT:
            rows.append([])
        rows[-1] += document
    return torch.tensor([row + [PAD] * (CONTEXT - len(row)) for row in rows])


def next_token_loss(model: LlamaForCausalLM, rows: Tensor) -> Tensor:
    """Mean cross-entropy of rows [batch, CONTEXT] without padding, in nats per token."""
    # Padding is at the end of a row, where causal attention hides it from all other tokens.
    labels = rows.masked_fill(rows == PAD, IGNORED_LABEL)
    loss: Tensor = model(input_ids=rows, labels=labels, use_cache=False).loss
    return loss


def train(model: LlamaForCausalLM, rows: Tensor, steps: int, seed: int) -> None:
    """Trains by AdamW on `rows` [rows, CONTEXT] in shuffled epochs. The learning rate warms up,
    then falls to 0 by a cosine."""
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.05
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: _learning_rate(step, steps)
    )
    batches = _batches(rows, seed)
    model.train()
    with progress(steps, "training the base") as advance:
        for step in range(steps):
            loss = next_token_loss(model, next(batches))
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            advance(1)
            if step % 200 == 0:
                say(f"step {step}: loss {loss.item():.3f}")
    model.eval()


@torch.no_grad()
def mean_loss(model: LlamaForCausalLM, rows: Tensor) -> float:
    """The loss over all predicted tokens of `rows` without padding, in nats per token."""
    total, count = 0.0, 0
    for batch in rows.split(ROWS_PER_STEP):
        tokens = int((batch[:, 1:] != PAD).sum())
        total += tokens * next_token_loss(model, batch).item()
        count += tokens
    return total / count


def build(out: Path, *, steps: int, texts: int, seed: int) -> Card:
    """Writes the base to `out`, with a card as PROVENANCE.json. Returns the card."""
    started = time.monotonic()
    train_texts = World(seed, "train").texts(texts)
    test_texts = World(seed, "test").texts(texts // 30)
    tokenizer = train_tokenizer(train_texts[:TOKENIZER_TEXTS])
    train_rows, test_rows = rows_of(tokenizer, train_texts), rows_of(tokenizer, test_texts)
    seed_everything(derive_seed("base", seed))
    model = LlamaForCausalLM(tiny_config())
    train(model, train_rows, steps, seed)
    options = {"steps": steps, "texts": texts, "seed": seed}
    card = {
        "what": "a tiny Llama trained on synthetic text alone, for `otter demo` and tests",
        "parameters": model.num_parameters(),
        "rows_per_step": ROWS_PER_STEP,
        "learning_rate": LEARNING_RATE,
        "train_text_tokens": int((train_rows != PAD).sum()),
        "train_loss": round(mean_loss(model, train_rows[: len(test_rows)]), 4),
        "held_out_loss": round(mean_loss(model, test_rows), 4),
        "seconds": round(time.monotonic() - started, 1),
        **options,
        **provenance([*COMMAND, *(f"--{name}={value}" for name, value in options.items())]),
    }
    with staged_folder(out, sources=()) as folder:
        model.save_pretrained(folder)
        save_tokenizer(tokenizer, folder, CONTEXT)
        write_json(folder / "PROVENANCE.json", card)
    return card


def rows_of(tokenizer: Tokenizer, texts: list[str]) -> Tensor:
    """The texts as rows of tokens: [rows, CONTEXT]."""
    return pack([[*encoding.ids, EOS] for encoding in tokenizer.encode_batch(texts)])


def _learning_rate(step: int, steps: int) -> float:
    return min(1.0, (step + 1) / WARM_UP_STEPS) * 0.5 * (1 + math.cos(math.pi * step / steps))


def _batches(rows: Tensor, seed: int) -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    while True:
        for chosen in torch.randperm(len(rows), generator=generator).split(ROWS_PER_STEP):
            yield rows[chosen]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--texts", type=int, default=TEXTS)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    card = build(options.out, steps=options.steps, texts=options.texts, seed=options.seed)
    say(f"held-out loss {card['held_out_loss']} nats per token, {card['seconds']} s")


if __name__ == "__main__":
    main()
