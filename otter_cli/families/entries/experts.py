"""Mixtures of experts; and of these, the families whose attention takes no inserted heads.

Experts are fused in memory, so the stream reads what a mixture gives, not what its units hold; the
inserted units begin as those of one expert. The router reads h alone and is left as it is.
"""

from dataclasses import replace

from otter_cli.families.entries.llama import BIASED, HEADS_NORMED
from otter_cli.families.family import Attention, Family, FeedForward

UNTAPPED = Attention(tap="output")
DENSE = ("mlp.gate_proj", "mlp.up_proj")

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
    attention=HEADS_NORMED,
    ffn=FeedForward(
        gate="mlp.experts.0.gate_proj",
        up="mlp.experts.0.up_proj",
        tap="output",
        elsewhere=(DENSE,),
    ),
    keys={"intermediate_size": "moe_intermediate_size"},
)

GPT_OSS = Family(
    "gpt_oss",
    "GptOssForCausalLM",
    attention=replace(BIASED, sinks="self_attn.sinks"),
    # Its experts lie packed in one tensor, in four bits as released: nothing to copy from.
    ffn=FeedForward(gate="", up="", tap="output"),
    defaults={"attention_bias": True, "head_dim": 64},
)

LLAMA4 = Family(
    "llama4_text",
    "Llama4ForCausalLM",
    attention=UNTAPPED,
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
    attention=UNTAPPED,
    ffn=FeedForward(
        gate="mlp.shared_experts.gate_proj",
        up="mlp.shared_experts.up_proj",
        tap="output",
        elsewhere=(DENSE,),
    ),
    keys={"intermediate_size": "moe_intermediate_size"},
    buffers=("mlp.gate.e_score_correction_bias",),
    ffn_only="its keys and values are latent, and compressed for all heads together",
)

QWEN3_NEXT = Family(
    "qwen3_next",
    "Qwen3NextForCausalLM",
    attention=replace(UNTAPPED, elsewhere="linear_attn"),
    ffn=FeedForward(
        gate="mlp.shared_expert.gate_proj",
        up="mlp.shared_expert.up_proj",
        tap="output",
        elsewhere=(DENSE,),
    ),
    norm_offset=1.0,
    keys={"intermediate_size": "shared_expert_intermediate_size"},
    ffn_only="most of its layers have linear attention",
)

ENTRIES = (MIXTRAL, QWEN3_MOE, GPT_OSS, LLAMA4, DEEPSEEK, QWEN3_NEXT)
