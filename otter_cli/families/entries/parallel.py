"""Families whose attention and FFN read the layer's input side by side: Cohere2, GPT-NeoX, Phi."""

from dataclasses import replace

from otter_cli.families.entries.llama import BIASED
from otter_cli.families.family import Family, FeedForward

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

ENTRIES = (COHERE2,)
