"""The tiny checkpoints must show every part of a model, or tests over them prove little."""

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.conftest import TinyCheckpoint


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3"])
def test_checkpoint_loads_whole_and_is_not_degenerate(
    tiny_checkpoint: TinyCheckpoint, family: str
) -> None:
    folder = tiny_checkpoint(family)
    model, info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    ids = torch.arange(3, 40)[None]
    logits = model(ids).logits
    assert 0.5 < logits.std() < 5
    for name, parameter in model.named_parameters():
        assert parameter.std() > 0.05, f"{name} is nearly constant"


def test_the_shards_tie_and_dtype_asked_for(tiny_checkpoint: TinyCheckpoint) -> None:
    folder = tiny_checkpoint("llama", tied=True, dtype="bfloat16", max_shard="20kB")
    assert (folder / "model.safetensors.index.json").exists()
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model.dtype == torch.bfloat16
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_the_tokenizer_keeps_printable_text(tiny_llama) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    text = "Hello, world? {it's} 97% fine."
    ids = tokenizer(text).input_ids
    assert ids[0] == tokenizer.bos_token_id and len(ids) == len(text) + 1
    assert tokenizer.decode(ids, skip_special_tokens=True) == text
