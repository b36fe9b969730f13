"""Families whose attention and FFN read the layer's input side by side: Cohere2, GPT-NeoX, Phi."""

from dataclasses import replace

from otter_cli.families.entries.llama import BIASED
from otter_cli.families.family import Attention, Family, FeedForward

EPS = {"rms_norm_eps": "layer_norm_eps"}

COHERE2 = Family(
    "cohere2",
    "Cohere2ForCausalLM",
    # Its full-attention layers do not rotate; the others have a window.
    attention=replace(BIASED, rotary_if="sliding_window"),
    ffn=FeedForward(norm="input_layernorm"),
    norm="layer",
    parallel=True,
    logit_scale="logit_scale",
    keys=EPS,
    defaults={"tie_word_embeddings": True, "logit_scale": 0.0625, "head_dim": 128},
)

GPT_NEOX = Family(
    "gpt_neox",
    "GPTNeoXForCausalLM",
    decoder="gpt_neox",
    layers="gpt_neox.layers",
    embedding="gpt_neox.embed_in",
    final_norm="gpt_neox.final_layer_norm",
    stored_head="embed_out",
    attention=Attention(
        module="attention",
        query="attention.query_key_value",
        key="attention.query_key_value",
        value="attention.query_key_value",
        out="attention.dense",
        fused="by head",
        equal_heads=True,
        bias="attention_bias",
        out_bias="attention_bias",
    ),
    ffn=FeedForward(
        gate="", plain=True, up="mlp.dense_h_to_4h", down="mlp.dense_4h_to_h", bias=True
    ),
    norm="layer",
    norm_bias=True,
    parallel="use_parallel_residual",
    keys=EPS,
    defaults={"attention_bias": True, "use_parallel_residual": True, "hidden_act": "gelu"},
    buffers=("attention.bias", "attention.masked_bias", "attention.rotary_emb.inv_freq"),
)

PHI = Family(
    "phi",
    "PhiForCausalLM",
    final_norm="model.final_layernorm",
    head_bias=True,
    attention=Attention(out="self_attn.dense", bias=True, out_bias=True),
    ffn=FeedForward(
        norm="input_layernorm", gate="", plain=True, up="mlp.fc1", down="mlp.fc2", bias=True
    ),
    norm="layer",
    norm_bias=True,
    parallel=True,
    keys=EPS,
    defaults={"hidden_act": "gelu_new"},
    refused=(("qk_layernorm", True, "it norms queries and keys by LayerNorm"),),
)

ENTRIES = (COHERE2, GPT_NEOX, PHI)
