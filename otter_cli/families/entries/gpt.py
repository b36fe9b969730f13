"""The older decoders: LayerNorm with biases, learned positions, a plain FFN."""

from otter_cli.families.family import Attention, Family, FeedForward, Positions

GPT2 = Family(
    "gpt2",
    "GPT2LMHeadModel",
    decoder="transformer",
    layers="transformer.h",
    embedding="transformer.wte",
    final_norm="transformer.ln_f",
    positions=Positions("transformer.wpe"),
    attention=Attention(
        module="attn",
        norm="ln_1",
        query="attn.c_attn",
        key="attn.c_attn",
        value="attn.c_attn",
        out="attn.c_proj",
        fused="stacked",
        bias=True,
        out_bias=True,
    ),
    ffn=FeedForward(
        norm="ln_2", gate="", plain=True, up="mlp.c_fc", down="mlp.c_proj", bias=True, widening=4
    ),
    norm="layer",
    norm_bias=True,
    transposed=True,
    keys={
        "hidden_size": "n_embd",
        "num_hidden_layers": "n_layer",
        "num_attention_heads": "n_head",
        "max_position_embeddings": "n_positions",
        "intermediate_size": "n_inner",
        "rms_norm_eps": "layer_norm_epsilon",
        "hidden_act": "activation_function",
    },
    defaults={"tie_word_embeddings": True, "activation_function": "gelu_new"},
    refused=(("add_cross_attention", True, "it attends to an encoder too"),),
    buffers=("attn.bias", "attn.masked_bias"),
)

ENTRIES = (GPT2,)
