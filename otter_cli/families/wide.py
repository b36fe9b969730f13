"""Which families the wide layout can hold, and why not the others (METHOD, 2)."""

from __future__ import annotations

from otter_cli.families.family import Family

# By the names of their classes in transformers: RMS norms before each of two branches in turn,
# which is what the modelling file splits.
WIDE = {
    "llama": "Llama",
    "mistral": "Mistral",
    "qwen2": "Qwen2",
    "qwen3": "Qwen3",
    "smollm3": "SmolLM3",
    "granite": "Granite",
    "phi3": "Phi3",
}


def why_not_wide(family: Family) -> str:
    """Empty where the layout holds it."""
    attention, ffn = family.attention, family.ffn
    if family.model_type in WIDE:
        return ""
    if family.ffn_only:
        return family.ffn_only
    if ffn.tap == "output":
        return "its experts would all be widened for units that stand beside their mixture"
    if attention.joint_norm:
        return "it norms all queries and keys jointly, and inserted ones must stay out of that"
    if attention.post_norm:
        return "it norms what a branch gives, after the sum that a wide matrix makes at once"
    return "its norms take away a mean, and the modelling file splits RMS norms alone"
