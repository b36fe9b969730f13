"""Gemma: norms before and after each branch, weights stored around zero, scaled embeddings."""

from dataclasses import replace

from otter_cli.families.entries.llama import BIASED, HEADS_NORMED
from otter_cli.families.family import SQRT_WIDTH, Family, FeedForward

GEMMA2 = Family(
    "gemma2",
    "Gemma2ForCausalLM",
    attention=replace(BIASED, post_norm="post_attention_layernorm"),
    ffn=FeedForward(norm="pre_feedforward_layernorm", post_norm="post_feedforward_layernorm"),
    norm_offset=1.0,
    embedding_scale=SQRT_WIDTH,
    logit_cap="final_logit_softcapping",
    keys={"hidden_act": "hidden_activation"},
    defaults={
        "tie_word_embeddings": True,
        "head_dim": 256,
        "hidden_activation": "gelu_pytorch_tanh",
    },
    refused=(("use_bidirectional_attention", True, "its attention looks ahead"),),
)

ENTRIES = (
    GEMMA2,
    replace(
        GEMMA2,
        model_type="gemma3_text",
        architecture="Gemma3ForCausalLM",
        attention=replace(HEADS_NORMED, post_norm="post_attention_layernorm"),
        buffers=(),
    ),
)
