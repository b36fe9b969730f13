"""Whether config.json and generation_config.json are plain: every key and value of a kind that is
known to load. What is not plain may be sound all the same, which transformers has to say."""

from __future__ import annotations

from collections.abc import Callable
from math import isfinite
from typing import Any

from otter_cli.families.shape import BaseShape

Check = Callable[[Any], bool]
_LARGE = 1 << 24


def _whole(low: int) -> Check:
    return lambda value: type(value) is int and low <= value <= _LARGE


def _number(low: float, high: float) -> Check:
    """A float proper: transformers refuses whole numbers for some of these."""
    return lambda value: type(value) is float and isfinite(value) and low <= value <= high


def _or_none(check: Check) -> Check:
    return lambda value: value is None or check(value)


def _texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(text, str) for text in value)


def _one_of(*names: str) -> Check:
    return lambda value: isinstance(value, str) and value in names


def _is_bool(value: Any) -> bool:
    return type(value) is bool


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


_SIZE, _SHARE, _EPS = _whole(1), _number(0.0, 1.0), _number(1e-12, 1e-2)
_FACTOR = _number(1e-4, 1e4)
_DTYPE = _or_none(_one_of("float32", "float64", "float16", "bfloat16"))
_ACTIVATION = _one_of("silu", "gelu", "gelu_new", "gelu_pytorch_tanh", "gelu_fast", "relu")


def _each(names: str, check: Check) -> dict[str, Check]:
    return dict.fromkeys(names.split(), check)


# By key, whatever the family: one that reads the key otherwise is rehearsed by its test.
_KEYS: dict[str, Check] = {
    **_each("vocab_size hidden_size intermediate_size num_hidden_layers", _SIZE),
    **_each("max_position_embeddings n_embd n_layer n_head n_positions n_ctx ffn_dim", _SIZE),
    **_each("word_embed_proj_dim query_pre_attn_scalar max_window_layers", _SIZE),
    **_each("original_max_position_embeddings no_rope_layer_interval", _SIZE),
    "num_attention_heads": _SIZE,
    **_each("num_key_value_heads head_dim n_inner", _or_none(_SIZE)),
    "pretraining_tp": lambda value: value == 1 and type(value) is int,
    **_each("attention_bias mlp_bias use_cache tie_word_embeddings enable_bias", _is_bool),
    **_each("use_parallel_residual do_layer_norm_before scale_attn_weights", _is_bool),
    **_each("reorder_and_upcast_attn scale_attn_by_inverse_layer_idx", _is_bool),
    **_each("summary_proj_to_labels summary_use_proj is_decoder", _is_bool),
    **_each("output_attentions output_hidden_states _from_model_config do_sample", _is_bool),
    **_each("attention_dropout resid_pdrop embd_pdrop attn_pdrop hidden_dropout", _SHARE),
    **_each("dropout activation_dropout layerdrop summary_first_dropout top_p", _SHARE),
    "classifier_dropout": _or_none(_SHARE),
    **_each("rms_norm_eps layer_norm_eps layer_norm_epsilon", _EPS),
    **_each("initializer_range init_std", _number(0.0, 10.0)),
    "rope_theta": _number(1.0, 1e12),
    **_each("embedding_multiplier residual_multiplier attention_multiplier", _FACTOR),
    **_each("logits_scaling logit_scale temperature repetition_penalty", _FACTOR),
    **_each("attn_logit_softcapping final_logit_softcapping", _or_none(_FACTOR)),
    **_each("hidden_act activation_function hidden_activation", _ACTIVATION),
    **_each("model_type transformers_version _name_or_path _model_name_or_path", _is_text),
    "summary_type": _is_text,
    "summary_activation": _or_none(_is_text),
    "architectures": _texts,
    **_each("dtype torch_dtype", _DTYPE),
    **_each("rope_scaling quantization_config", lambda value: value is None),
    **_each("use_sliding_window qk_layernorm add_cross_attention", lambda value: value is False),
    **_each("_remove_final_layer_norm", lambda value: value is False),
    **_each("layer_norm_elementwise_affine", lambda value: value is True),
    "use_bidirectional_attention": lambda value: value is None or value is False,
    **_each("max_length max_new_tokens top_k", _SIZE),
}
_IDS = ("pad_token_id", "bos_token_id", "eos_token_id", "unk_token_id", "sep_token_id")


_WINDOWS = ("sliding_attention", "full_attention")


def is_plain_config(config: dict[str, Any], shape: BaseShape) -> bool:
    """Whether every entry of config.json is of a kind that loads and runs."""
    if not shape.family.positions and shape.head_dim % 2:
        return False  # half of a head is rotated against the other
    if not all(_plain_entry(key, value, shape) for key, value in config.items()):
        return False
    windowed = "sliding_attention" in config.get("layer_types", ())
    return not windowed or _SIZE(config.get("sliding_window"))


def is_plain_generation(config: dict[str, Any], shape: BaseShape) -> bool:
    """The same of generation_config.json."""
    return all(_plain_entry(key, value, shape) for key, value in config.items())


def _plain_entry(key: str, value: Any, shape: BaseShape) -> bool:
    if key in _IDS:
        return value is None or all(_is_id(i, shape) for i in _listed(key, value))
    if key in _OF_LAYERS:
        return _OF_LAYERS[key](value, shape)
    return key in _KEYS and _KEYS[key](value)


def _listed(key: str, value: Any) -> list[Any]:
    return value if key == "eos_token_id" and isinstance(value, list) and value else [value]


def _is_id(value: Any, shape: BaseShape) -> bool:
    return type(value) is int and 0 <= value < shape.vocab


def _layer_types(value: Any, shape: BaseShape) -> bool:
    return _each_layer(value, shape, _one_of(*_WINDOWS))


def _unrotated(value: Any, shape: BaseShape) -> bool:
    return _each_layer(value, shape, lambda one: type(one) is int and one in (0, 1))


def _each_layer(value: Any, shape: BaseShape, check: Check) -> bool:
    return isinstance(value, list) and len(value) == shape.layers and all(map(check, value))


def _window(value: Any, shape: BaseShape) -> bool:
    return value is None or _SIZE(value)


def _rope(value: Any, shape: BaseShape) -> bool:
    """One rotation without scaling, or one for each kind of layer."""
    if not isinstance(value, dict):
        return False
    if value and value.keys() <= set(_WINDOWS):
        return len(value) == len(_WINDOWS) and all(_rotation(v, shape) for v in value.values())
    return _rotation(value, shape)


def _rotation(value: Any, shape: BaseShape) -> bool:
    return (
        isinstance(value, dict)
        and value.keys() <= {"rope_type", "rope_theta", "partial_rotary_factor"}
        and value.get("rope_type", "default") == "default"
        and _number(1.0, 1e12)(value.get("rope_theta"))
        and _partial(value.get("partial_rotary_factor", 1.0), shape)
    )


def _partial(value: Any, shape: BaseShape) -> bool:
    rotated = int(shape.head_dim * value) if _SHARE(value) else 0
    return rotated > 0 and rotated % 2 == 0


_OF_LAYERS: dict[str, Callable[[Any, BaseShape], bool]] = {
    "layer_types": _layer_types,
    "no_rope_layers": _unrotated,
    "sliding_window": _window,
    "rope_parameters": _rope,
}
