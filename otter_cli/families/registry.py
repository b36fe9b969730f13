"""The supported families, one entry each, and the reading of a config.json into a shape."""

from __future__ import annotations

from typing import Any

from otter_cli.core.errors import OtterError
from otter_cli.core.suggest import closest
from otter_cli.families.family import Attention, BaseShape, Family, FeedForward, flag

FAMILIES: dict[str, Family] = {
    family.model_type: family
    for family in (
        Family(
            "llama",
            "LlamaForCausalLM",
            attention=Attention(bias="attention_bias", out_bias="attention_bias"),
            ffn=FeedForward(bias="mlp_bias"),
        ),
        Family("mistral", "MistralForCausalLM"),
        Family("qwen2", "Qwen2ForCausalLM", attention=Attention(bias=True)),
        Family(
            "qwen3",
            "Qwen3ForCausalLM",
            attention=Attention(
                bias="attention_bias",
                out_bias="attention_bias",
                query_norm="self_attn.q_norm",
                key_norm="self_attn.k_norm",
            ),
        ),
    )
}

# Refused by name: why, and the nearest thing that works.
REFUSED: dict[str, str] = {
    "bert": "an encoder: it writes no text, so there are no logits to leave unchanged",
    "t5": "an encoder-decoder: the insertion is defined for decoders",
    "mamba": "has no attention and no FFN block to insert beside",
    "opt": "learned positions with an offset and LayerNorm: not described yet",
    "gpt2": "transposed, fused projections and LayerNorm: not described yet",
    "gemma2": "four norms a layer and soft-capping: not described yet",
}

# No model that fits a machine is larger than this in any one dimension.
_LARGEST = 1 << 24


def find_family(config: dict[str, Any]) -> Family:
    """The family of a base by config.json's `model_type`. Raises OtterError, naming it, where
    unsupported."""
    name = config.get("model_type")
    if not isinstance(name, str):
        raise OtterError(
            "config.json names no model_type",
            hint="is this the folder of a transformers checkpoint?",
        )
    if name in FAMILIES:
        return FAMILIES[name]
    reason = REFUSED.get(name, "no description of it here")
    near = closest(name, FAMILIES)
    hint = f"the nearest supported family is {near}; " if near else ""
    raise OtterError(
        f"family {name!r} is not supported: {reason}",
        hint=f"{hint}`otter inspect --families` lists what is",
    )


def base_shape(config: dict[str, Any]) -> BaseShape:
    """Reads the sizes of a base from config.json. Raises OtterError for absent or absurd
    numbers."""
    family = find_family(config)
    heads = _size(config, "num_attention_heads")
    kv_heads = _size(config, "num_key_value_heads", default=heads)
    hidden = _size(config, "hidden_size")
    if heads % kv_heads:
        raise OtterError(
            f"config.json: num_attention_heads {heads} is not a multiple of "
            f"num_key_value_heads {kv_heads}",
            hint="the checkpoint's configuration is damaged",
        )
    return BaseShape(
        family=family,
        layers=_size(config, "num_hidden_layers"),
        hidden=hidden,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=_size(config, "head_dim", default=max(hidden // heads, 1)),
        ffn=_size(config, "intermediate_size"),
        vocab=_size(config, "vocab_size"),
        max_positions=_size(config, "max_position_embeddings", default=2048),
        norm_eps=float(config.get("rms_norm_eps", 1e-6)),
        activation=str(config.get("hidden_act", "silu")),
        tied=bool(config.get("tie_word_embeddings", False)),
        attention_bias=flag(family.attention.bias, config),
        out_bias=flag(family.attention.out_bias, config),
        ffn_bias=flag(family.ffn.bias, config),
    )


def _size(config: dict[str, Any], key: str, default: int | None = None) -> int:
    value = config.get(key)
    if value is None and default is not None:
        return default
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= _LARGEST:
        raise OtterError(
            f"config.json: {key} is {value!r}, not a number from 1 to {_LARGEST}",
            hint="the checkpoint's configuration is damaged, or not a decoder's",
        )
    return value
