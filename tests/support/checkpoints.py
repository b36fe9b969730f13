"""Small random checkpoints in the layout that real ones have, written by transformers itself."""

import string
from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

SHAPE: dict[str, Any] = {
    "num_hidden_layers": 3,
    "hidden_size": 32,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "intermediate_size": 48,
    "vocab_size": 97,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def write_checkpoint(
    folder: Path,
    family: str,
    *,
    tied: bool = False,
    dtype: str = "float32",
    max_shard: str = "5GB",
    seed: int = 0,
    **config: Any,
) -> None:
    """Weights, config.json, generation_config.json and tokenizer of one tiny model."""
    settings = {**SHAPE, "tie_word_embeddings": tied, "dtype": dtype, **config}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **settings))
    fill_with_noise(model, seed)
    model.to(getattr(torch, dtype)).save_pretrained(folder, max_shard_size=max_shard)
    characters_tokenizer().save_pretrained(folder)


def fill_with_noise(model: PreTrainedModel, seed: int) -> None:
    """Weights of a size at which every part of the model shows in the logits.

    Fresh models have norms of one, biases of zero and nearly flat attention: an insertion that
    forgets one of them would go unnoticed.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if any(n in name for n in ("norm", "ln_")) and name.endswith("weight"):
                parameter.copy_(0.3 * noise + parameter.mean().round())
            elif parameter.ndim < 2:
                parameter.copy_(0.3 * noise)
            elif any(table in name for table in ("embed", "wte", "wpe")):
                parameter.copy_(noise)
            else:
                parameter.copy_(1.5 * noise / parameter.shape[-1] ** 0.5)


def characters_tokenizer() -> PreTrainedTokenizerFast:
    """One token a printable character: 3 special ones and 94 characters make 97.

    The space is written as a tilde inside (as "▁" is elsewhere), newlines become spaces.
    """
    characters = "".join(c for c in string.printable if c.isprintable() and c != " ")
    vocabulary = {token: i for i, token in enumerate(["<pad>", "<s>", "</s>", *characters])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.normalizer = normalizers.Replace(Regex(r"\s"), "~")
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("~", " "), decoders.Fuse()])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )
