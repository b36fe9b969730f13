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
        equal_heads=True,
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
    buffers=("attn.bias",),
)

OPT = Family(
    "opt",
    "OPTForCausalLM",
    decoder="model.decoder",
    layers="model.decoder.layers",
    embedding="model.decoder.embed_tokens",
    final_norm="model.decoder.final_layer_norm",
    positions=Positions("model.decoder.embed_positions", offset=2),
    attention=Attention(
        norm="self_attn_layer_norm",
        out="self_attn.out_proj",
        equal_heads=True,
        bias="enable_bias",
        out_bias="enable_bias",
        scaled_query=True,
    ),
    # The layer itself holds the two products: what comes into the first is what the FFN reads.
    ffn=FeedForward(
        module="fc1",
        norm="final_layer_norm",
        gate="",
        plain=True,
        up="fc1",
        down="fc2",
        bias="enable_bias",
    ),
    norm="layer",
    norm_bias=True,
    keys={
        "intermediate_size": "ffn_dim",
        "rms_norm_eps": "layer_norm_eps",
        "hidden_act": "activation_function",
    },
    defaults={
        "tie_word_embeddings": True,
        "enable_bias": True,
        "layer_norm_eps": 1e-5,
        "activation_function": "relu",
    },
    refused=(
        ("do_layer_norm_before", False, "its norms come after the residual, as in opt-350m"),
        ("_remove_final_layer_norm", True, "it has no final norm"),
        ("layer_norm_elementwise_affine", False, "its norms have no weights"),
    ),
    buffers=(),
)

ENTRIES = (GPT2, OPT)
