"""Well-known families that are refused: why, and the nearest thing that works."""

from __future__ import annotations

_ENCODER = "an encoder: it writes no text, so there are no logits to leave unchanged"
_BOTH = "an encoder-decoder: the insertion is defined for decoders"
_STATE = "a state-space model: it has no attention and FFN branches to insert beside"
_SEES = "reads images or sound too: the insertion is defined for text decoders"
_ALIBI = "it gives positions by a bias on the attention scores, which is not described here"
_OTHER = "its layers are not described here"

_DECODER = "a decoder, such as llama or gpt2"
_TEXT = "the text model by itself"

_MIXED = f"{_OTHER}: attention and state space mixed"


def _each(names: str, why: str, instead: str) -> dict[str, tuple[str, str]]:
    return dict.fromkeys(names.split(), (why, instead))


# model_type: (why not, what works in its place).
REFUSED: dict[str, tuple[str, str]] = {
    **_each("albert bert deberta deberta-v2 distilbert electra", _ENCODER, _DECODER),
    **_each("modernbert roberta xlm-roberta", _ENCODER, _DECODER),
    **_each("bart marian mbart mt5 pegasus t5 t5gemma whisper", _BOTH, _DECODER),
    **_each("mamba mamba2 rwkv xlstm", _STATE, "qwen3_next, FFN only"),
    **_each("bamba falcon_h1 jamba lfm2 nemotron_h", _MIXED, "qwen3_next, FFN only"),
    **_each("granitemoehybrid", _MIXED, "granite"),
    **_each("gemma3 gemma3n", _SEES, f"{_TEXT}, as gemma3_text"),
    **_each("llama4", _SEES, f"{_TEXT}, as llama4_text"),
    **_each("llava mllama", _SEES, f"{_TEXT}, as llama"),
    **_each("mistral3", _SEES, f"{_TEXT}, as mistral"),
    **_each("qwen2_vl qwen2_5_vl", _SEES, f"{_TEXT}, as qwen2"),
    **_each("qwen3_vl qwen3_vl_moe", _SEES, f"{_TEXT}, as qwen3 or qwen3_moe"),
    **_each("bloom mpt", _ALIBI, "gpt_neox"),
    "cohere": (f"{_OTHER}: it may norm queries and keys by LayerNorm", "cohere2"),
    "deepseek_v2": (_OTHER, "deepseek_v3, FFN only"),
    "falcon": (f"{_ALIBI}, in some sizes", "gpt_neox"),
    "gemma": (_OTHER, "gemma2"),
    "gemma3n_text": (f"{_OTHER}: several residual streams", "gemma3_text"),
    "gpt_bigcode": (f"{_OTHER}: all heads share one key", "gpt2"),
    "gpt_neo": (_OTHER, "gpt_neox"),
    "gptj": (_OTHER, "gpt_neox"),
    "granitemoe": (_OTHER, "granite"),
    "olmo": (f"{_OTHER}: norms without weights", "olmo2"),
    "olmoe": (_OTHER, "qwen3_moe"),
    "phimoe": (_OTHER, "mixtral, or phi3"),
    "qwen2_moe": (_OTHER, "qwen3_moe"),
    "stablelm": (_OTHER, "llama"),
    "starcoder2": (_OTHER, "gpt_neox"),
}
