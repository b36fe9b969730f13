"""One entry for each supported family. A new family is one entry here and one test.

The entries are grouped by kinship: Llama, Gemma, OLMo, parallel branches, older decoders with
LayerNorm, and mixtures of experts. The experts of a layer are fused in memory, so the stream reads
the output of the mixture, and the inserted units start as those of one expert.
"""

from dataclasses import replace

from otter_cli.families.family import (
    SQRT_HIDDEN_SIZE,
    Attention,
    Family,
    FeedForward,
    LearnedPositions,
)

BIASED_ATTENTION = Attention(bias="attention_bias", out_bias="attention_bias")
QK_NORM_ATTENTION = replace(
    BIASED_ATTENTION, query_norm="self_attn.q_norm", key_norm="self_attn.k_norm"
)

LLAMA_FAMILIES = (
    Family(
        "llama", "LlamaForCausalLM", attention=BIASED_ATTENTION, ffn=FeedForward(bias="mlp_bias")
    ),
    Family("mistral", "MistralForCausalLM"),
    Family("qwen2", "Qwen2ForCausalLM", attention=Attention(bias=True)),
    Family("qwen3", "Qwen3ForCausalLM", attention=QK_NORM_ATTENTION),
    Family(
        "smollm3",
        "SmolLM3ForCausalLM",
        attention=replace(BIASED_ATTENTION, rotary_if="use_rope"),
        ffn=FeedForward(bias="mlp_bias"),
        defaults={"tie_word_embeddings": True, "pad_token_id": 128004},
    ),
    Family(
        "granite",
        "GraniteForCausalLM",
        attention=BIASED_ATTENTION,
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


GEMMA2 = Family(
    "gemma2",
    "Gemma2ForCausalLM",
    attention=replace(BIASED_ATTENTION, post_norm="post_attention_layernorm"),
    ffn=FeedForward(norm="pre_feedforward_layernorm", post_norm="post_feedforward_layernorm"),
    norm_offset=1.0,
    embedding_scale=SQRT_HIDDEN_SIZE,
    logit_cap="final_logit_softcapping",
    keys={"hidden_act": "hidden_activation"},
    defaults={
        "tie_word_embeddings": True,
        "head_dim": 256,
        "hidden_activation": "gelu_pytorch_tanh",
    },
    refused=(("use_bidirectional_attention", True, "its attention looks ahead"),),
)

GEMMA_FAMILIES = (
    GEMMA2,
    replace(
        GEMMA2,
        model_type="gemma3_text",
        architecture="Gemma3ForCausalLM",
        attention=replace(QK_NORM_ATTENTION, post_norm="post_attention_layernorm"),
        buffers=(),
    ),
)


OLMO2 = Family(
    "olmo2",
    "Olmo2ForCausalLM",
    attention=replace(
        QK_NORM_ATTENTION, norm="", post_norm="post_attention_layernorm", joint_norm=True
    ),
    ffn=FeedForward(norm="", post_norm="post_feedforward_layernorm"),
)

OLMO_FAMILIES = (
    OLMO2,
    replace(OLMO2, model_type="olmo3", architecture="Olmo3ForCausalLM", buffers=()),
)


LAYER_NORM_EPS_KEY = {"rms_norm_eps": "layer_norm_eps"}

COHERE2 = Family(
    "cohere2",
    "Cohere2ForCausalLM",
    # Its full-attention layers do not rotate; the others have a window.
    attention=replace(BIASED_ATTENTION, rotary_if="sliding_window"),
    ffn=FeedForward(norm="input_layernorm"),
    norm="layer",
    parallel=True,
    logit_scale="logit_scale",
    keys=LAYER_NORM_EPS_KEY,
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
    keys=LAYER_NORM_EPS_KEY,
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
    keys=LAYER_NORM_EPS_KEY,
    defaults={"hidden_act": "gelu_new"},
    refused=(("qk_layernorm", True, "it norms queries and keys by LayerNorm"),),
)

PARALLEL_FAMILIES = (COHERE2, GPT_NEOX, PHI)


GPT2 = Family(
    "gpt2",
    "GPT2LMHeadModel",
    decoder="transformer",
    layers="transformer.h",
    embedding="transformer.wte",
    final_norm="transformer.ln_f",
    positions=LearnedPositions("transformer.wpe"),
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
    positions=LearnedPositions("model.decoder.embed_positions", offset=2),
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

LAYER_NORM_FAMILIES = (GPT2, OPT)


OUTPUT_TAP_ATTENTION = Attention(tap="output")
DENSE_FFN = ("mlp.gate_proj", "mlp.up_proj")

MIXTRAL = Family(
    "mixtral",
    "MixtralForCausalLM",
    ffn=FeedForward(
        gate="block_sparse_moe.experts.0.w1", up="block_sparse_moe.experts.0.w3", tap="output"
    ),
)

QWEN3_MOE = Family(
    "qwen3_moe",
    "Qwen3MoeForCausalLM",
    attention=QK_NORM_ATTENTION,
    ffn=FeedForward(
        gate="mlp.experts.0.gate_proj",
        up="mlp.experts.0.up_proj",
        tap="output",
        elsewhere=(DENSE_FFN,),
    ),
    keys={"intermediate_size": "moe_intermediate_size"},
)

GPT_OSS = Family(
    "gpt_oss",
    "GptOssForCausalLM",
    attention=replace(BIASED_ATTENTION, sinks="self_attn.sinks"),
    # Its experts lie packed in one tensor, in four bits as released: nothing to copy from.
    ffn=FeedForward(gate="", up="", tap="output"),
    defaults={"attention_bias": True, "head_dim": 64},
)

LLAMA4 = Family(
    "llama4_text",
    "Llama4ForCausalLM",
    attention=OUTPUT_TAP_ATTENTION,
    ffn=FeedForward(
        module="feed_forward",
        gate="feed_forward.shared_expert.gate_proj",
        up="feed_forward.shared_expert.up_proj",
        tap="output",
        elsewhere=(("feed_forward.gate_proj", "feed_forward.up_proj"),),
    ),
    ffn_only="its queries are scaled by position and normed after the rotation",
)

DEEPSEEK = Family(
    "deepseek_v3",
    "DeepseekV3ForCausalLM",
    attention=OUTPUT_TAP_ATTENTION,
    ffn=FeedForward(
        gate="mlp.shared_experts.gate_proj",
        up="mlp.shared_experts.up_proj",
        tap="output",
        elsewhere=(DENSE_FFN,),
    ),
    keys={"intermediate_size": "moe_intermediate_size"},
    buffers=("mlp.gate.e_score_correction_bias",),
    ffn_only="its keys and values are latent, and compressed for all heads together",
)

QWEN3_NEXT = Family(
    "qwen3_next",
    "Qwen3NextForCausalLM",
    attention=replace(OUTPUT_TAP_ATTENTION, elsewhere="linear_attn"),
    ffn=FeedForward(
        gate="mlp.shared_expert.gate_proj",
        up="mlp.shared_expert.up_proj",
        tap="output",
        elsewhere=(DENSE_FFN,),
    ),
    norm_offset=1.0,
    keys={"intermediate_size": "shared_expert_intermediate_size"},
    ffn_only="most of its layers have linear attention",
)

EXPERT_FAMILIES = (MIXTRAL, QWEN3_MOE, GPT_OSS, LLAMA4, DEEPSEEK, QWEN3_NEXT)


ALL_FAMILIES = (
    *LLAMA_FAMILIES,
    *GEMMA_FAMILIES,
    *OLMO_FAMILIES,
    *PARALLEL_FAMILIES,
    *LAYER_NORM_FAMILIES,
    *EXPERT_FAMILIES,
)
