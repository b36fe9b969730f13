"""Llama and the families that differ from it by a trait or two."""

from dataclasses import replace

from otter_cli.families.family import Attention, Family, FeedForward

BIASED = Attention(bias="attention_bias", out_bias="attention_bias")
HEADS_NORMED = replace(BIASED, query_norm="self_attn.q_norm", key_norm="self_attn.k_norm")

ENTRIES = (
    Family("llama", "LlamaForCausalLM", attention=BIASED, ffn=FeedForward(bias="mlp_bias")),
    Family("mistral", "MistralForCausalLM"),
    Family("qwen2", "Qwen2ForCausalLM", attention=Attention(bias=True)),
    Family("qwen3", "Qwen3ForCausalLM", attention=HEADS_NORMED),
    Family(
        "smollm3",
        "SmolLM3ForCausalLM",
        attention=replace(BIASED, rotary_if="use_rope"),
        ffn=FeedForward(bias="mlp_bias"),
        defaults={"tie_word_embeddings": True, "pad_token_id": 128004},
    ),
    Family(
        "granite",
        "GraniteForCausalLM",
        attention=BIASED,
        ffn=FeedForward(bias="mlp_bias"),
        embedding_scale="embedding_multiplier",
        residual_scale="residual_multiplier",
        logit_divisor="logits_scaling",
    ),
    Family(
        "phi3",
        "Phi3ForCausalLM",
        attention=Attention(
            query="self_attn.qkv_proj",
            key="self_attn.qkv_proj",
            value="self_attn.qkv_proj",
            fused="stacked",
        ),
        ffn=FeedForward(gate="mlp.gate_up_proj", up="mlp.gate_up_proj", fused=True),
        defaults={"pad_token_id": 32000},
    ),
)
