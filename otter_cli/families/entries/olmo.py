"""OLMo 2 and 3: the branches read h as it is and are normed after; q and k over all heads."""

from dataclasses import replace

from otter_cli.families.entries.llama import HEADS_NORMED
from otter_cli.families.family import Family, FeedForward

OLMO2 = Family(
    "olmo2",
    "Olmo2ForCausalLM",
    attention=replace(HEADS_NORMED, norm="", post_norm="post_attention_layernorm", joint_norm=True),
    ffn=FeedForward(norm="", post_norm="post_feedforward_layernorm"),
)

ENTRIES = (
    OLMO2,
    replace(OLMO2, model_type="olmo3", architecture="Olmo3ForCausalLM", buffers=()),
)
