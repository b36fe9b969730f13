"""The data of every family: one entry for each supported one, and a reason for each refused one.

Supporting a family takes one entry here and one case in tests/support/families.py. The experts of a
layer are fused in memory, so the stream reads the output of the mixture, and the inserted units
start as those of one expert.
"""

from dataclasses import replace

from otter_cli.families.family import (
    SQRT_HIDDEN_SIZE,
    Attention,
    Family,
    FeedForward,
    LearnedPositions,
)

_BIASED_ATTENTION = Attention(bias="attention_bias", out_bias="attention_bias")
_QK_NORM_ATTENTION = replace(
    _BIASED_ATTENTION, query_norm="self_attn.q_norm", key_norm="self_attn.k_norm"
)
_OUTPUT_READ_ATTENTION = Attention(read_at="output")
_BIASED_FFN = FeedForward(bias="mlp_bias")
_DENSE_UNITS = ("mlp.gate_proj", "mlp.up_proj")
_LAYER_NORM_EPS_KEY = {"rms_norm_eps": "layer_norm_eps"}

_GEMMA2 = Family(
    "gemma2",
    "Gemma2ForCausalLM",
    attention=replace(_BIASED_ATTENTION, post_norm="post_attention_layernorm"),
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

_OLMO2 = Family(
    "olmo2",
    "Olmo2ForCausalLM",
    attention=replace(
        _QK_NORM_ATTENTION, norm="", post_norm="post_attention_layernorm", joint_norm=True
    ),
    ffn=FeedForward(norm="", post_norm="post_feedforward_layernorm"),
)

ALL_FAMILIES = (
    # Llama and families like it: an RMS norm before each of two successive branches.
    Family("llama", "LlamaForCausalLM", attention=_BIASED_ATTENTION, ffn=_BIASED_FFN, wide=True),
    Family("mistral", "MistralForCausalLM", wide=True),
    Family("qwen2", "Qwen2ForCausalLM", attention=Attention(bias=True), wide=True),
    Family("qwen3", "Qwen3ForCausalLM", attention=_QK_NORM_ATTENTION, wide=True),
    Family(
        "smollm3",
        "SmolLM3ForCausalLM",
        attention=replace(_BIASED_ATTENTION, rotary_flag="use_rope"),
        ffn=_BIASED_FFN,
        defaults={"tie_word_embeddings": True, "pad_token_id": 128004},
        wide=True,
    ),
    Family(
        "granite",
        "GraniteForCausalLM",
        attention=_BIASED_ATTENTION,
        ffn=_BIASED_FFN,
        embedding_scale="embedding_multiplier",
        residual_scale="residual_multiplier",
        logit_divisor="logits_scaling",
        wide=True,
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
        wide=True,
    ),
    # Norms after the branches as well, or only there.
    _GEMMA2,
    replace(
        _GEMMA2,
        model_type="gemma3_text",
        architecture="Gemma3ForCausalLM",
        attention=replace(_QK_NORM_ATTENTION, post_norm="post_attention_layernorm"),
        buffers=(),
    ),
    _OLMO2,
    replace(_OLMO2, model_type="olmo3", architecture="Olmo3ForCausalLM", buffers=()),
    # LayerNorm; most have parallel branches.
    Family(
        "cohere2",
        "Cohere2ForCausalLM",
        # Layers with a sliding window rotate, and layers with full attention do not.
        attention=replace(_BIASED_ATTENTION, rotary_flag="sliding_window"),
        ffn=FeedForward(norm="input_layernorm"),
        norm="layer",
        parallel=True,
        logit_scale="logit_scale",
        keys=_LAYER_NORM_EPS_KEY,
        defaults={"tie_word_embeddings": True, "logit_scale": 0.0625, "head_dim": 128},
    ),
    Family(
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
            fused="interleaved",
            multi_head=True,
            bias="attention_bias",
            out_bias="attention_bias",
        ),
        ffn=FeedForward(
            gate="", ungated=True, up="mlp.dense_h_to_4h", down="mlp.dense_4h_to_h", bias=True
        ),
        norm="layer",
        norm_bias=True,
        parallel="use_parallel_residual",
        keys=_LAYER_NORM_EPS_KEY,
        defaults={"attention_bias": True, "use_parallel_residual": True, "hidden_act": "gelu"},
        buffers=("attention.bias", "attention.masked_bias", "attention.rotary_emb.inv_freq"),
    ),
    Family(
        "phi",
        "PhiForCausalLM",
        final_norm="model.final_layernorm",
        head_bias=True,
        attention=Attention(out="self_attn.dense", bias=True, out_bias=True),
        ffn=FeedForward(
            norm="input_layernorm", gate="", ungated=True, up="mlp.fc1", down="mlp.fc2", bias=True
        ),
        norm="layer",
        norm_bias=True,
        parallel=True,
        keys=_LAYER_NORM_EPS_KEY,
        defaults={"hidden_act": "gelu_new"},
        refused=(("qk_layernorm", True, "it norms queries and keys by LayerNorm"),),
    ),
    Family(
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
            multi_head=True,
            bias=True,
            out_bias=True,
        ),
        ffn=FeedForward(
            norm="ln_2",
            gate="",
            ungated=True,
            up="mlp.c_fc",
            down="mlp.c_proj",
            bias=True,
            expansion=4,
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
    ),
    Family(
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
            multi_head=True,
            bias="enable_bias",
            out_bias="enable_bias",
            scaled_query=True,
        ),
        # The two linears are modules of the layer itself: the FFN reads the input of the first.
        ffn=FeedForward(
            module="fc1",
            norm="final_layer_norm",
            gate="",
            ungated=True,
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
    ),
    # Mixtures of experts.
    Family(
        "mixtral",
        "MixtralForCausalLM",
        ffn=FeedForward(
            gate="block_sparse_moe.experts.0.w1",
            up="block_sparse_moe.experts.0.w3",
            read_at="output",
        ),
    ),
    Family(
        "qwen3_moe",
        "Qwen3MoeForCausalLM",
        attention=_QK_NORM_ATTENTION,
        ffn=FeedForward(
            gate="mlp.experts.0.gate_proj",
            up="mlp.experts.0.up_proj",
            read_at="output",
            alternatives=(_DENSE_UNITS,),
        ),
        keys={"intermediate_size": "moe_intermediate_size"},
    ),
    Family(
        "gpt_oss",
        "GptOssForCausalLM",
        attention=replace(_BIASED_ATTENTION, sinks="self_attn.sinks"),
        # The experts are packed in one tensor, in four bits as released, so no unit is copied.
        ffn=FeedForward(gate="", up="", read_at="output"),
        defaults={"attention_bias": True, "head_dim": 64},
    ),
    Family(
        "llama4_text",
        "Llama4ForCausalLM",
        attention=_OUTPUT_READ_ATTENTION,
        ffn=FeedForward(
            module="feed_forward",
            gate="feed_forward.shared_expert.gate_proj",
            up="feed_forward.shared_expert.up_proj",
            read_at="output",
            alternatives=(("feed_forward.gate_proj", "feed_forward.up_proj"),),
        ),
        ffn_only="its queries are scaled by position and normed after the rotation",
    ),
    Family(
        "deepseek_v3",
        "DeepseekV3ForCausalLM",
        attention=_OUTPUT_READ_ATTENTION,
        ffn=FeedForward(
            gate="mlp.shared_experts.gate_proj",
            up="mlp.shared_experts.up_proj",
            read_at="output",
            alternatives=(_DENSE_UNITS,),
        ),
        keys={"intermediate_size": "moe_intermediate_size"},
        buffers=("mlp.gate.e_score_correction_bias",),
        ffn_only="its keys and values are latent, and compressed for all heads together",
    ),
    Family(
        "qwen3_next",
        "Qwen3NextForCausalLM",
        attention=replace(_OUTPUT_READ_ATTENTION, alternative_module="linear_attn"),
        ffn=FeedForward(
            gate="mlp.shared_expert.gate_proj",
            up="mlp.shared_expert.up_proj",
            read_at="output",
            alternatives=(_DENSE_UNITS,),
        ),
        norm_offset=1.0,
        keys={"intermediate_size": "shared_expert_intermediate_size"},
        ffn_only="most of its layers have linear attention",
    ),
)

_ENCODER = "an encoder: it writes no text, so there are no logits to leave unchanged"
_ENCODER_DECODER = "an encoder-decoder: the insertion is defined for decoders"
_STATE_SPACE = "a state-space model: it has no attention and FFN branches to insert beside"
_MULTIMODAL = "reads images or sound too: the insertion is defined for text decoders"
_ALIBI = "it gives positions by a bias on the attention scores, which is not described here"
_UNDESCRIBED = "its layers are not described here"
_HYBRID = f"{_UNDESCRIBED}: attention and state space mixed"
_DECODER = "a decoder, such as llama or gpt2"
_TEXT_MODEL = "the text model by itself"


def _each(names: str, reason: str, instead: str) -> dict[str, tuple[str, str]]:
    return dict.fromkeys(names.split(), (reason, instead))


# By model_type: the reason, and the nearest family that works.
REFUSED_FAMILIES: dict[str, tuple[str, str]] = {
    **_each("albert bert deberta deberta-v2 distilbert electra", _ENCODER, _DECODER),
    **_each("modernbert roberta xlm-roberta", _ENCODER, _DECODER),
    **_each("bart marian mbart mt5 pegasus t5 t5gemma whisper", _ENCODER_DECODER, _DECODER),
    **_each("mamba mamba2 rwkv xlstm", _STATE_SPACE, "qwen3_next, FFN only"),
    **_each("bamba falcon_h1 jamba lfm2 nemotron_h", _HYBRID, "qwen3_next, FFN only"),
    **_each("granitemoehybrid", _HYBRID, "granite"),
    **_each("gemma3 gemma3n", _MULTIMODAL, f"{_TEXT_MODEL}, as gemma3_text"),
    **_each("llama4", _MULTIMODAL, f"{_TEXT_MODEL}, as llama4_text"),
    **_each("llava mllama", _MULTIMODAL, f"{_TEXT_MODEL}, as llama"),
    **_each("mistral3", _MULTIMODAL, f"{_TEXT_MODEL}, as mistral"),
    **_each("qwen2_vl qwen2_5_vl", _MULTIMODAL, f"{_TEXT_MODEL}, as qwen2"),
    **_each("qwen3_vl qwen3_vl_moe", _MULTIMODAL, f"{_TEXT_MODEL}, as qwen3 or qwen3_moe"),
    **_each("bloom mpt", _ALIBI, "gpt_neox"),
    "cohere": (f"{_UNDESCRIBED}: it may norm queries and keys by LayerNorm", "cohere2"),
    "deepseek_v2": (_UNDESCRIBED, "deepseek_v3, FFN only"),
    "falcon": (f"{_ALIBI}, in some sizes", "gpt_neox"),
    "gemma": (_UNDESCRIBED, "gemma2"),
    "gemma3n_text": (f"{_UNDESCRIBED}: several residual streams", "gemma3_text"),
    "gpt_bigcode": (f"{_UNDESCRIBED}: all heads share one key", "gpt2"),
    **_each("gpt_neo gptj", _UNDESCRIBED, "gpt_neox"),
    "granitemoe": (_UNDESCRIBED, "granite"),
    "olmo": (f"{_UNDESCRIBED}: norms without weights", "olmo2"),
    "olmoe": (_UNDESCRIBED, "qwen3_moe"),
    "phimoe": (_UNDESCRIBED, "mixtral, or phi3"),
    "qwen2_moe": (_UNDESCRIBED, "qwen3_moe"),
    "stablelm": (_UNDESCRIBED, "llama"),
    "starcoder2": (_UNDESCRIBED, "gpt_neox"),
}
