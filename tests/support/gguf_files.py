"""Tiny GGUF files of every architecture, written with the gguf library.

Names and shapes come from transformers' own table, turned around: the values are random, in the
forms in which llama.cpp stores them.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
import transformers
from transformers.integrations import GGUF_CONFIG_MAPPING
from transformers.modeling_gguf_pytorch_utils import (
    TENSOR_PROCESSORS,
    TensorProcessor,
    get_gguf_hf_weights_map,
)

VOCAB = 128
SIZES: dict[str, Any] = {
    "vocab_size": VOCAB, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "intermediate_size": 96, "max_position_embeddings": 128,
    "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
_GPT2 = {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_ctx": 1024, "max_position_embeddings": 1024}
_T5 = {"d_model": 64, "d_ff": 96, "d_kv": 16, "num_layers": 2, "num_heads": 4,
       "num_key_value_heads": 4, "n_positions": 128, "is_gated_act": True,
       "feed_forward_proj": "gated-gelu", "decoder_start_token_id": 0}  # fmt: skip
# Of two layers the first has linear attention, the second full attention.
_QWEN35 = {
    "head_dim": 16,
    "full_attention_interval": 2,
    "linear_conv_kernel_dim": 4,
    "linear_key_head_dim": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_value_head_dim": 8,
    "rope_parameters": {
        "rope_theta": 10000.0,
        "partial_rotary_factor": 0.5,
        "mrope_section": [2, 1, 1],
        "rope_type": "default",
    },
}
# Keys of transformers' newer loader, which has no table of them.
_QWEN35_KEYS: dict[str, Any] = {
    "context_length": 128,
    "embedding_length": 64,
    "block_count": 2,
    "feed_forward_length": 96,
    "attention.head_count": 4,
    "attention.head_count_kv": 2,
    "attention.key_length": 16,
    "attention.layer_norm_rms_epsilon": 1e-6,
    "full_attention_interval": 2,
    "ssm.conv_kernel": 4,
    "ssm.state_size": 8,
    "ssm.group_count": 2,
    "ssm.time_step_rank": 4,
    "ssm.inner_size": 32,
    "rope.freq_base": 10000.0,
    "rope.dimension_sections": [2, 1, 1, 0],
    "rope.dimension_count": 8,
}
_KEYS: dict[str, dict[str, Any]] = {
    "qwen35": _QWEN35_KEYS,
    "qwen35moe": {
        **_QWEN35_KEYS,
        "expert_feed_forward_length": 32,
        "expert_count": 4,
        "expert_shared_feed_forward_length": 32,
        "expert_used_count": 2,
    },
    "lfm2": {
        "context_length": 128,
        "embedding_length": 64,
        "block_count": 2,
        "feed_forward_length": 96,
        "attention.head_count": 4,
        "attention.head_count_kv": [0, 2],
        "attention.layer_norm_rms_epsilon": 1e-5,
        "shortconv.l_cache": 3,
        "rope.freq_base": 10000.0,
    },
}

# Where gguf has no table of names for what transformers calls the model.
_NAMES_OF = {"lfm2": "lfm2", "qwen35": "qwen35", "qwen35moe": "qwen35moe", "mistral": "llama"}

# Name in files: name in transformers' table, configuration class, and what it differs in.
ARCHITECTURES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "llama": ("llama", "LlamaConfig", {"head_dim": 16}),
    "mistral": ("mistral", "MistralConfig", {"head_dim": 16}),
    "qwen2": ("qwen2", "Qwen2Config", {}),
    "qwen2moe": ("qwen2_moe", "Qwen2MoeConfig", {**_EXPERTS, "moe_intermediate_size": 1408,
                 "shared_expert_intermediate_size": 5632}),
    "qwen3": ("qwen3", "Qwen3Config", {"head_dim": 128}),
    "qwen3moe": ("qwen3_moe", "Qwen3MoeConfig", {**_EXPERTS, "head_dim": 16,
                 "moe_intermediate_size": 768}),
    "gemma2": ("gemma2", "Gemma2Config", {"head_dim": 16, "sliding_window": 8,
               "tie_word_embeddings": True}),
    "gemma3": ("gemma3", "Gemma3TextConfig", {"head_dim": 16, "sliding_window": 8,
               "tie_word_embeddings": True}),
    "gemma4": ("gemma4", "Gemma4TextConfig", {"tie_word_embeddings": True}),
    "phi3": ("phi3", "Phi3Config", {}),
    "falcon": ("falcon", "FalconConfig", {"tie_word_embeddings": True}),
    "bloom": ("bloom", "BloomConfig", {"n_layer": 2, "n_head": 4, "tie_word_embeddings": True}),
    "gpt2": ("gpt2", "GPT2Config", _GPT2),
    "starcoder2": ("starcoder2", "Starcoder2Config", {}),
    "stablelm": ("stablelm", "StableLmConfig", {"use_qkv_bias": True}),
    "nemotron": ("nemotron", "NemotronConfig", {}),
    "mamba": ("mamba", "MambaConfig", {"state_size": 8, "time_step_rank": 4,
              "intermediate_size": 128}),
    "lfm2": ("lfm2", "Lfm2Config", {"layer_types": ["conv", "full_attention"],
             "block_auto_adjust_ff_dim": False, "tie_word_embeddings": True}),
    "gpt-oss": ("gpt_oss", "GptOssConfig", {"num_local_experts": 4, "num_experts_per_tok": 2,
                "head_dim": 64}),
    "minimax-m2": ("minimax_m2", "MiniMaxM2Config", {"num_local_experts": 4,
                   "num_experts_per_tok": 2, "head_dim": 16, "rotary_dim": 8}),
    "deci": ("deci", "LlamaConfig", {}),
    "qwen35": ("qwen35", "Qwen3_5TextConfig", _QWEN35),
    "qwen35moe": ("qwen35moe", "Qwen3_5MoeTextConfig", {**_QWEN35, **_EXPERTS,
                  "shared_expert_intermediate_size": 32}),
    "t5": ("t5", "T5Config", _T5),
    "umt5": ("umt5", "UMT5Config", _T5),
}  # fmt: skip


def write_gguf(
    path: Path,
    architecture: str = "llama",
    *,
    seed: int = 0,
    types: tuple[str, ...] = ("Q8_0", "Q4_0", "Q4_1", "F16"),
    tokenizer: bool = False,
    extra: dict[str, np.ndarray] | None = None,
    without: str | None = None,
    split: int = 0,
) -> Path:
    """A whole model; `split` puts so many tensors into each file, named as llama.cpp does."""
    table, class_name, different = ARCHITECTURES[architecture]
    config = getattr(transformers, class_name)(**{**SIZES, **different})
    writer = gguf.GGUFWriter(path, architecture, split_max_tensors=split)
    writer.add_name(f"tiny {architecture}")
    _add_sizes(writer, architecture, table, config)
    if tokenizer:
        add_tokenizer(writer)
    plain = gguf.GGMLQuantizationType.F32
    kinds = [gguf.GGMLQuantizationType[name] for name in types]
    for number, (name, values) in enumerate(_tensors(architecture, config, seed).items()):
        if name == without:
            continue
        wide = values.ndim > 1 and values.shape[-1] % 32 == 0 and "ssm" not in name
        kind = kinds[0 if "_exps" in name else number % len(kinds)] if wide else plain
        writer.add_tensor(name, gguf.quantize(values, kind), raw_dtype=kind)
    for name, values in (extra or {}).items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add_sizes(writer: gguf.GGUFWriter, architecture: str, table: str, config: Any) -> None:
    writer.add_pad_token_id(0)
    for key, value in _KEYS.get(architecture, _from_config(table, config)).items():
        name = f"{architecture}.{key}"
        if isinstance(value, list):
            writer.add_array(name, value)
        elif isinstance(value, int):
            writer.add_uint32(name, value)
        else:
            writer.add_float32(name, value)


def _from_config(table: str, config: Any) -> dict[str, Any]:
    """What transformers' table reads from a file, with the values of a configuration."""
    values = {
        key: getattr(config, attribute or "", None)
        for key, attribute in GGUF_CONFIG_MAPPING.get(table, {}).items()
    }
    values |= dict.fromkeys(values.keys() & {"rope.freq_base"}, 10000.0)
    if "feed_forward_length" in values and values["feed_forward_length"] is None:
        values["feed_forward_length"] = 256
    return {
        key: value
        for key, value in values.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }


def _tensors(architecture: str, config: Any, seed: int) -> dict[str, np.ndarray]:
    """What llama.cpp would store, by its names."""
    for auto in (transformers.AutoModelForCausalLM, transformers.AutoModelForSeq2SeqLM):
        if type(config) in auto._model_mapping:
            with torch.device("meta"):
                model = auto.from_config(config)
            break
    processor = TENSOR_PROCESSORS.get(architecture, TensorProcessor)(config=config.to_dict())
    names = get_gguf_hf_weights_map(model, processor, _NAMES_OF.get(architecture))
    if architecture.startswith("qwen35"):
        names = dict(_qwen35_names(names))
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    generator = np.random.default_rng(seed)
    tensors = {}
    for stored, name in names.items():
        if name in model.all_tied_weights_keys or name not in shapes:
            continue
        shape = _stored_shape(architecture, stored, shapes[name])
        values = generator.normal(0, 0.3, shape).astype(np.float32)
        if "norm.weight" in stored:
            values = 1 + values / 10
        if stored.endswith("ssm_a"):
            values = -np.abs(values) - 0.1
        tensors[stored + ".weight" * stored.endswith("_exps")] = values
    return tensors


def _qwen35_names(names: dict[str, str]) -> Iterator[tuple[str, str]]:
    """llama.cpp's names where gguf's table, made for other readers, has others."""
    yield "blk.0.ssm_dt.bias", "model.layers.0.linear_attn.dt_bias"
    for stored, name in names.items():
        if "ffn_gate_up_exps" in stored:
            yield stored.replace("gate_up", "gate"), name
            yield stored.replace("gate_up", "up"), name
        else:
            yield stored, name


def _stored_shape(architecture: str, name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    if re.search(r"ffn_(gate|up)_exps", name):
        return (shape[0], shape[1] // 2, shape[2])
    if "ssm_conv1d.weight" in name or "shortconv.conv.weight" in name:
        return (shape[0], shape[2])
    if "ffn_gate_inp_shexp" in name:
        return shape[1:]
    if architecture == "gpt2" and len(shape) == 2 and name.startswith("blk."):
        return shape[::-1]
    return shape


SPECIAL = ["<unk>", "<s>", "</s>", "<|user|>", *(f"<|extra_{i}|>" for i in range(16))]
TOKENS = [*SPECIAL, *map(chr, range(33, 127)), "Ġ", "Ċ", "th", "he", "the", "in", "er", "on", "Ġt",
          "Ġa", "an", "at", "re", "is"]  # fmt: skip
TEMPLATE = "{% for m in messages %}<|user|>{{ m['content'] }}</s>{% endfor %}"


def add_tokenizer(writer: gguf.GGUFWriter) -> None:
    """A byte-level vocabulary with merges, special tokens and a chat template."""
    assert len(TOKENS) <= VOCAB
    tokens = [*TOKENS, *(f"<|unused_{i}|>" for i in range(VOCAB - len(TOKENS)))]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("llama-bpe")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if "|" in token or token in SPECIAL else 1 for token in tokens])
    writer.add_token_merges(["t h", "h e", "th e", "i n", "e r", "o n", "Ġ t", "Ġ a", "a n",
                             "a t", "r e", "i s"])  # fmt: skip
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_add_bos_token(False)
    writer.add_chat_template(TEMPLATE)
