"""Whether every entry of config.json is of a kind that is known to load, and quantisation support.

A known-good configuration needs no trial load. Any other may be sound as well: then transformers
has to say. Bases that are quantised in the file need the package that reads them.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from math import isfinite
from typing import Any

from otter_cli.families.shape import BaseShape

ValueCheck = Callable[[Any], bool]
_MAX_INTEGER = 1 << 24


def _whole(low: int) -> ValueCheck:
    return lambda value: type(value) is int and low <= value <= _MAX_INTEGER


def _number(low: float, high: float) -> ValueCheck:
    """A float proper: transformers refuses whole numbers for some of these."""
    return lambda value: type(value) is float and isfinite(value) and low <= value <= high


def _or_none(check: ValueCheck) -> ValueCheck:
    return lambda value: value is None or check(value)


def _texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(text, str) for text in value)


def _one_of(*names: str) -> ValueCheck:
    return lambda value: isinstance(value, str) and value in names


def _is_bool(value: Any) -> bool:
    return type(value) is bool


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


_SIZE, _SHARE, _EPS = _whole(1), _number(0.0, 1.0), _number(1e-12, 1e-2)
_FACTOR = _number(1e-4, 1e4)
_DTYPE = _or_none(_one_of("float32", "float64", "float16", "bfloat16"))
_ACTIVATION = _one_of("silu", "gelu", "gelu_new", "gelu_pytorch_tanh", "gelu_fast", "relu")


def _each(names: str, check: ValueCheck) -> dict[str, ValueCheck]:
    return dict.fromkeys(names.split(), check)


# By key, whatever the family: one that reads the key otherwise is rehearsed by its test.
_KEY_CHECKS: dict[str, ValueCheck] = {
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
_ID_KEYS = ("pad_token_id", "bos_token_id", "eos_token_id", "unk_token_id", "sep_token_id")


_LAYER_TYPES = ("sliding_attention", "full_attention")


def is_known_good_config(config: dict[str, Any], shape: BaseShape) -> bool:
    """Whether every entry of config.json is of a kind that loads and runs."""
    if not shape.family.positions and shape.head_dim % 2:
        return False  # half of a head is rotated against the other
    if not all(_is_known_good_entry(key, value, shape) for key, value in config.items()):
        return False
    windowed = "sliding_attention" in config.get("layer_types", ())
    return not windowed or _SIZE(config.get("sliding_window"))


def is_known_good_generation_config(config: dict[str, Any], shape: BaseShape) -> bool:
    """The same of generation_config.json."""
    return all(_is_known_good_entry(key, value, shape) for key, value in config.items())


def _is_known_good_entry(key: str, value: Any, shape: BaseShape) -> bool:
    if key in _ID_KEYS:
        return value is None or all(_is_id(i, shape) for i in _listed(key, value))
    if key in _SHAPE_DEPENDENT_CHECKS:
        return _SHAPE_DEPENDENT_CHECKS[key](value, shape)
    return key in _KEY_CHECKS and _KEY_CHECKS[key](value)


def _listed(key: str, value: Any) -> list[Any]:
    return value if key == "eos_token_id" and isinstance(value, list) and value else [value]


def _is_id(value: Any, shape: BaseShape) -> bool:
    return type(value) is int and 0 <= value < shape.vocab


def _layer_types(value: Any, shape: BaseShape) -> bool:
    return _each_layer(value, shape, _one_of(*_LAYER_TYPES))


def _unrotated(value: Any, shape: BaseShape) -> bool:
    return _each_layer(value, shape, lambda one: type(one) is int and one in (0, 1))


def _each_layer(value: Any, shape: BaseShape, check: ValueCheck) -> bool:
    return isinstance(value, list) and len(value) == shape.layers and all(map(check, value))


def _window(value: Any, shape: BaseShape) -> bool:
    return value is None or _SIZE(value)


def _rope(value: Any, shape: BaseShape) -> bool:
    """One rotation without scaling, or one for each kind of layer."""
    if not isinstance(value, dict):
        return False
    if value and value.keys() <= set(_LAYER_TYPES):
        return len(value) == len(_LAYER_TYPES) and all(_rotation(v, shape) for v in value.values())
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


_SHAPE_DEPENDENT_CHECKS: dict[str, Callable[[Any, BaseShape], bool]] = {
    "layer_types": _layer_types,
    "no_rope_layers": _unrotated,
    "sliding_window": _window,
    "rope_parameters": _rope,
}


# By `quant_method`: the modules that transformers' quantisers import, and what pip calls them.
QUANTISATION_PACKAGES: dict[str, dict[str, str]] = {
    "aqlm": {"aqlm": "aqlm[gpu,cpu]"},
    "auto-round": {"auto_round": "auto-round"},
    "awq": {"gptqmodel": "gptqmodel"},
    "bitnet": {},
    "bitsandbytes": {"bitsandbytes": "bitsandbytes"},
    "bitsandbytes_4bit": {"bitsandbytes": "bitsandbytes"},
    "bitsandbytes_8bit": {"bitsandbytes": "bitsandbytes"},
    "compressed-tensors": {"compressed_tensors": "compressed-tensors"},
    "eetq": {"kernels": "kernels"},
    "fbgemm_fp8": {"fbgemm_gpu": "fbgemm-gpu"},
    "fouroversix": {"fouroversix": "fouroversix"},
    "fp8": {},
    "fp_quant": {"fp_quant": "fp_quant"},
    "gemma": {},
    "gptq": {"optimum": "optimum", "gptqmodel": "gptqmodel"},
    "higgs": {"flute": "flute-kernel", "fast_hadamard_transform": "fast_hadamard_transform"},
    "hqq": {"hqq": "hqq"},
    "metal": {"kernels": "kernels"},
    "mxfp4": {},
    "mxfp8": {},
    "nvfp4": {},
    "quanto": {"optimum.quanto": "optimum-quanto"},
    "quark": {"quark": "amd-quark"},
    "sinq": {"sinq": "sinq"},
    "spqr": {"spqr_quant": "spqr_quant[gpu]"},
    "torchao": {"torchao": "torchao"},
    "vptq": {"vptq": "vptq"},
}


def quantisation_error(config: dict[str, Any]) -> tuple[str, str] | None:
    """Why a base that is quantised in the file cannot be read here, and what to do; None: it can,
    or it is not quantised."""
    given = config.get("quantization_config")
    if given is None:
        return None
    method = given.get("quant_method") if isinstance(given, dict) else None
    if not isinstance(method, str) or method not in QUANTISATION_PACKAGES:
        name = "no quant_method" if method is None else ascii(method)[:60]
        return (
            f"config.json: quantization_config names {name}: transformers cannot read that",
            f"use the unquantised checkpoint; known: {', '.join(QUANTISATION_PACKAGES)}",
        )
    absent = [
        install
        for module, install in QUANTISATION_PACKAGES[method].items()
        if not _is_installed(module)
    ]
    if not absent:
        return None
    names = f"{' and '.join(absent)} {'are' if len(absent) > 1 else 'is'}"
    what = f"config.json: the base is quantised by {method}, and {names} not installed"
    return what, f"pip install {' '.join(absent)}; or use the unquantised checkpoint"


def _is_installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # of the package that it would be in
        return False
