"""The supported families by name, the refused ones with a reason, and those with a wide layout."""

from __future__ import annotations

from typing import Any

from otter_cli.core.errors import OtterError, closest
from otter_cli.families.entries import ALL_FAMILIES
from otter_cli.families.family import Family

_ENCODER = "an encoder: it writes no text, so there are no logits to leave unchanged"
_ENCODER_DECODER = "an encoder-decoder: the insertion is defined for decoders"
_STATE_SPACE = "a state-space model: it has no attention and FFN branches to insert beside"
_MULTIMODAL = "reads images or sound too: the insertion is defined for text decoders"
_ALIBI = "it gives positions by a bias on the attention scores, which is not described here"
_UNDESCRIBED = "its layers are not described here"

_DECODER = "a decoder, such as llama or gpt2"
_TEXT_MODEL = "the text model by itself"

_HYBRID = f"{_UNDESCRIBED}: attention and state space mixed"


def _each(names: str, why: str, instead: str) -> dict[str, tuple[str, str]]:
    return dict.fromkeys(names.split(), (why, instead))


# model_type: (why not, what works in its place).
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
    "gpt_neo": (_UNDESCRIBED, "gpt_neox"),
    "gptj": (_UNDESCRIBED, "gpt_neox"),
    "granitemoe": (_UNDESCRIBED, "granite"),
    "olmo": (f"{_UNDESCRIBED}: norms without weights", "olmo2"),
    "olmoe": (_UNDESCRIBED, "qwen3_moe"),
    "phimoe": (_UNDESCRIBED, "mixtral, or phi3"),
    "qwen2_moe": (_UNDESCRIBED, "qwen3_moe"),
    "stablelm": (_UNDESCRIBED, "llama"),
    "starcoder2": (_UNDESCRIBED, "gpt_neox"),
}


FAMILIES: dict[str, Family] = {family.model_type: family for family in ALL_FAMILIES}


def find_family(config: dict[str, Any]) -> Family:
    """The family of a base by config.json's `model_type`. Raises OtterError, naming it, where
    unsupported."""
    name = config.get("model_type")
    if not isinstance(name, str):
        raise OtterError(
            "config.json names no model_type",
            hint="is this the folder of a transformers checkpoint?",
        )
    if name in FAMILIES:
        return FAMILIES[name]
    why, instead = REFUSED_FAMILIES.get(name, ("there is no description of it here", ""))
    instead = instead or closest(name, FAMILIES) or ""
    raise OtterError(
        f"family {name!r} is not supported: {why}",
        hint=(f"the nearest that works: {instead}; " if instead else "")
        + "`otter inspect --families` lists what is supported",
    )


# By the names of their classes in transformers: RMS norms before each of two branches in turn,
# which is what the modelling file splits.
WIDE_CLASS_NAMES = {
    "llama": "Llama",
    "mistral": "Mistral",
    "qwen2": "Qwen2",
    "qwen3": "Qwen3",
    "smollm3": "SmolLM3",
    "granite": "Granite",
    "phi3": "Phi3",
}


def wide_layout_refusal(family: Family) -> str:
    """Empty where the layout holds it."""
    attention, ffn = family.attention, family.ffn
    if family.model_type in WIDE_CLASS_NAMES:
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
