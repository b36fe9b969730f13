"""Shapes of real models, with random weights: what a pass costs does not depend on the values."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from otter_cli.core.errors import OtterError
from otter_cli.core.suggest import closest

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

SHAPES: dict[str, dict[str, Any]] = {
    # For a smoke run: its ratios say nothing about a model of a real size.
    "tiny": {
        "model_type": "llama",
        "num_hidden_layers": 2,
        "hidden_size": 64,
        "num_attention_heads": 4,
        "intermediate_size": 160,
        "vocab_size": 256,
        "max_position_embeddings": 512,
    },
    "llama-134m": {
        "model_type": "llama",
        "num_hidden_layers": 12,
        "hidden_size": 768,
        "num_attention_heads": 12,
        "intermediate_size": 2048,
        "vocab_size": 32000,
        "max_position_embeddings": 8192,
    },
    "qwen3-0.6b": {
        "model_type": "qwen3",
        "num_hidden_layers": 28,
        "hidden_size": 1024,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "intermediate_size": 3072,
        "vocab_size": 151936,
        "max_position_embeddings": 40960,
        "tie_word_embeddings": True,
    },
    "llama-1b": {
        "model_type": "llama",
        "num_hidden_layers": 16,
        "hidden_size": 2048,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "intermediate_size": 8192,
        "vocab_size": 128256,
        "max_position_embeddings": 131072,
        "tie_word_embeddings": True,
    },
    "llama-7b": {
        "model_type": "llama",
        "num_hidden_layers": 32,
        "hidden_size": 4096,
        "num_attention_heads": 32,
        "intermediate_size": 11008,
        "vocab_size": 32000,
        "max_position_embeddings": 8192,
    },
}


def configuration(name: str) -> Any:
    """The transformers configuration of a shape. Raises OtterError for an unknown name."""
    from transformers import AutoConfig

    if name not in SHAPES:
        near = closest(name, SHAPES)
        raise OtterError(
            f"there is no shape {name!r}",
            hint=(f"did you mean {near!r}? " if near else "") + f"shapes: {', '.join(SHAPES)}",
        )
    settings = dict(SHAPES[name])
    return AutoConfig.for_model(settings.pop("model_type"), **settings)


def random_base(name: str, dtype: torch.dtype, device: str) -> PreTrainedModel:
    """A stock model of that shape, its weights drawn where it will run."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    with torch.device(device):
        return AutoModelForCausalLM.from_config(
            configuration(name), dtype=dtype, trust_remote_code=False
        ).eval()
