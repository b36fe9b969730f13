"""Which entries of config.json are known to load, and which quantised bases can be read.

A base whose entries are all known to load needs no trial load. Another base may be sound as well:
then transformers itself has to load it (graft/base_check.py).
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from math import isfinite
from typing import Any

from otter_cli.core.distribution import install_line
from otter_cli.families.shape import BaseShape

ValueCheck = Callable[[Any], bool]
_MAX_INTEGER = 1 << 24


def _is_bool(value: Any) -> bool:
    return type(value) is bool


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _integer(low: int) -> ValueCheck:
    return lambda value: type(value) is int and low <= value <= _MAX_INTEGER


def _float(low: float, high: float) -> ValueCheck:
    """No integers: transformers refuses them for some of these keys."""
    return lambda value: type(value) is float and isfinite(value) and low <= value <= high


def _one_of(*names: str) -> ValueCheck:
    return lambda value: isinstance(value, str) and value in names


def _or_none(check: ValueCheck) -> ValueCheck:
    return lambda value: value is None or check(value)


def _list_of(check: ValueCheck, length: int | None = None) -> ValueCheck:
    return lambda value: (
        isinstance(value, list)
        and (length is None or len(value) == length)
        and all(map(check, value))
    )


_SIZE, _SHARE, _EPS = _integer(1), _float(0.0, 1.0), _float(1e-12, 1e-2)
_FACTOR = _float(1e-4, 1e4)
_DTYPE = _or_none(_one_of("float32", "float64", "float16", "bfloat16"))
_ACTIVATION = _one_of("silu", "gelu", "gelu_new", "gelu_pytorch_tanh", "gelu_fast", "relu")


def _each(names: str, check: ValueCheck) -> dict[str, ValueCheck]:
    return dict.fromkeys(names.split(), check)


# By key, for all families. A family that reads a key differently needs a trial load in its test.
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
    **_each("initializer_range init_std", _float(0.0, 10.0)),
    "rope_theta": _float(1.0, 1e12),
    **_each("embedding_multiplier residual_multiplier attention_multiplier", _FACTOR),
    **_each("logits_scaling logit_scale temperature repetition_penalty", _FACTOR),
    **_each("attn_logit_softcapping final_logit_softcapping", _or_none(_FACTOR)),
    **_each("hidden_act activation_function hidden_activation", _ACTIVATION),
    **_each("model_type transformers_version _name_or_path _model_name_or_path", _is_text),
    "summary_type": _is_text,
    "summary_activation": _or_none(_is_text),
    "architectures": _list_of(_is_text),
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
        return False  # rotary embeddings rotate one half of a head against the other
    windowed = "sliding_attention" in config.get("layer_types", ())
    return has_known_good_entries(config, shape) and (
        not windowed or _SIZE(config.get("sliding_window"))
    )


def has_known_good_entries(config: dict[str, Any], shape: BaseShape) -> bool:
    """The same of the single entries of config.json or generation_config.json."""
    return all(_is_known_good(key, value, shape) for key, value in config.items())


def _is_known_good(key: str, value: Any, shape: BaseShape) -> bool:
    if key in _ID_KEYS:
        several = key == "eos_token_id" and isinstance(value, list) and value
        ids = value if several else [value]
        return value is None or all(type(i) is int and 0 <= i < shape.vocab for i in ids)
    if key == "layer_types":
        return _list_of(_one_of(*_LAYER_TYPES), shape.layers)(value)
    if key == "no_rope_layers":
        return _list_of(lambda flag: type(flag) is int and flag in (0, 1), shape.layers)(value)
    if key == "sliding_window":
        return _or_none(_SIZE)(value)
    if key == "rope_parameters":
        return _is_known_good_rope(value, shape)
    return key in _KEY_CHECKS and _KEY_CHECKS[key](value)


def _is_known_good_rope(value: Any, shape: BaseShape) -> bool:
    """A single rotation without scaling, or one for each layer type."""
    if isinstance(value, dict) and value.keys() == {*_LAYER_TYPES}:
        return all(_is_unscaled_rotation(rotation, shape) for rotation in value.values())
    return _is_unscaled_rotation(value, shape)


def _is_unscaled_rotation(value: Any, shape: BaseShape) -> bool:
    known = {"rope_type", "rope_theta", "partial_rotary_factor"}
    if not isinstance(value, dict) or not value.keys() <= known:
        return False
    share = value.get("partial_rotary_factor", 1.0)
    rotated = int(shape.head_dim * share) if _SHARE(share) else 0
    return (
        value.get("rope_type", "default") == "default"
        and _float(1.0, 1e12)(value.get("rope_theta"))
        and rotated > 0
        and rotated % 2 == 0
    )


# By `quant_method`: the modules that transformers' quantiser imports, and their names for pip.
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
    """Why a base that is quantised in its files cannot be read here, and what to do about it. None
    where it can be read, or is not quantised."""
    settings = config.get("quantization_config")
    if settings is None:
        return None
    method = settings.get("quant_method") if isinstance(settings, dict) else None
    if not isinstance(method, str) or method not in QUANTISATION_PACKAGES:
        name = "no quant_method" if method is None else ascii(method)[:60]
        return (
            f"config.json: quantization_config names {name}: transformers cannot read that",
            f"use the unquantised checkpoint; known: {', '.join(QUANTISATION_PACKAGES)}",
        )
    packages = QUANTISATION_PACKAGES[method]
    missing = [package for module, package in packages.items() if not _is_installed(module)]
    if not missing:
        return None
    names = f"{' and '.join(missing)} {'are' if len(missing) > 1 else 'is'}"
    what = f"config.json: the base is quantised by {method}, and {names} not installed"
    return what, f"{install_line(missing)}; or use the unquantised checkpoint"


def _is_installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # the package that would contain the module
        return False
