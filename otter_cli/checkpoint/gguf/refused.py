"""What a GGUF file may hold that a checkpoint folder cannot carry: refused by name."""

from __future__ import annotations

import re
from collections import Counter
from math import prod
from typing import Any

from otter_cli.checkpoint.gguf.header import DAMAGED, GgufHeader
from otter_cli.checkpoint.strict_json import shown
from otter_cli.core.errors import OtterError

_SAFETENSORS = "import another file of the model, or use its safetensors checkpoint"
_BLOCK = re.compile(r"(?:^|\.)blk\.(\d+)\.")
_KINDS = {
    "mmproj": "a multimodal projector, not a language model",
    "adapter": "a LoRA adapter, not a model",
    "imatrix": "an importance matrix, not a model",
    "vocab": "a vocabulary without a model",
}


def refuse_what_cannot_be_imported(headers: list[GgufHeader]) -> None:
    """OtterError when a model of these files cannot become a checkpoint folder."""
    first = headers[0]
    # Of split files only the first says what the model is.
    if not isinstance(first.metadata.get("general.architecture"), str):
        raise OtterError(f"{first.path}: the header names no general.architecture", hint=DAMAGED)
    kind = first.metadata.get("general.type", "model")
    if first.architecture == "clip":
        kind = "mmproj"
    if kind in _KINDS:
        raise OtterError(f"{first.path} is {_KINDS[kind]}", hint="give the file of the model")
    _refuse_unknown_architecture(first)
    _refuse_rope_scaling(first)
    _refuse_types(headers)
    _refuse_block_count(headers)


def _refuse_unknown_architecture(header: GgufHeader) -> None:
    name = header.architecture
    if name not in supported_architectures():
        known = ", ".join(supported_architectures())
        raise OtterError(
            f"{header.path}: the installed transformers does not import the architecture "
            f"{shown(name)}",
            hint=f"it imports {known}; or use the model's safetensors checkpoint",
        )


def supported_architectures() -> list[str]:
    """The values of general.architecture that transformers' GGUF loader takes."""
    from transformers.integrations.gguf import GGUF_CONFIG_ARCHS
    from transformers.modeling_gguf_pytorch_utils import GGUF_SUPPORTED_ARCHITECTURES

    # The loader's list goes by its own names, which are not those in files for some.
    in_files = {"qwen2_moe": "qwen2moe", "qwen3_moe": "qwen3moe", "gpt_oss": "gpt-oss",
                "minimax_m2": "minimax-m2"}  # fmt: skip
    names = {in_files.get(name, name) for name in GGUF_SUPPORTED_ARCHITECTURES}
    return sorted(names - {"general", "tokenizer"} | set(GGUF_CONFIG_ARCHS))


def reads_by_conversion(architecture: str) -> bool:
    """Whether transformers loads the architecture by newer code, which converts while it reads."""
    from transformers.integrations.gguf import GGUF_CONFIG_ARCHS

    return architecture in GGUF_CONFIG_ARCHS


def _refuse_rope_scaling(header: GgufHeader) -> None:
    """transformers' loader leaves scaled positions out, and the model would be another one."""
    name = header.architecture
    kind = header.metadata.get(f"{name}.rope.scaling.type", "none")
    if kind != "none" and name != "gpt-oss":
        raise OtterError(
            f"{header.path}: its rotary positions are scaled ({shown(str(kind))}), which "
            "transformers' GGUF loader does not carry over",
            hint=_SAFETENSORS,
        )


def _refuse_types(headers: list[GgufHeader]) -> None:
    """Every type must be one that the gguf library turns into numbers."""
    import numpy as np
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, dequantize

    readable: set[str] = set()
    for header in headers:
        for tensor in header.tensors.values():
            if tensor.type_name in readable:
                continue
            readable.add(tensor.type_name)
            kind = GGMLQuantizationType(tensor.type_id)
            try:
                dequantize(np.zeros(GGML_QUANT_SIZES[kind][1], np.uint8), kind)
            except NotImplementedError as error:
                raise OtterError(
                    f"{header.path}: tensor {shown(tensor.name)} is of type {kind.name}, which the "
                    "gguf library cannot dequantise",
                    hint=_SAFETENSORS,
                ) from error


def _refuse_block_count(headers: list[GgufHeader]) -> None:
    """A damaged count of layers must not make a model of a million of them."""
    first = headers[0]
    count = first.metadata.get(f"{first.architecture}.block_count")
    blocks = {
        int(match[1])
        for header in headers
        for name in header.tensors
        if (match := _BLOCK.search(name))
    }
    there = max(blocks, default=-1) + 1
    if not isinstance(count, int) or count != there:
        raise OtterError(
            f"{first.path}: the header speaks of {count} layers, the tensors make up {there}",
            hint=DAMAGED,
        )


def quantisation(headers: list[GgufHeader]) -> dict[str, dict[str, int]]:
    """How many tensors and parameters are stored in each type."""
    tensors: Counter[str] = Counter()
    parameters: Counter[str] = Counter()
    for header in headers:
        for tensor in header.tensors.values():
            tensors[tensor.type_name] += 1
            parameters[tensor.type_name] += prod(tensor.shape)
    return {
        kind: {"tensors": tensors[kind], "parameters": parameters[kind]} for kind in sorted(tensors)
    }


def unread_metadata(header: GgufHeader) -> dict[str, Any]:
    """What the file says of its model that transformers' loader does not take over."""
    from transformers.integrations import GGUF_CONFIG_MAPPING

    name = header.architecture
    known = GGUF_CONFIG_MAPPING.get(name) or GGUF_CONFIG_MAPPING.get(name.replace("-", "_")) or {}
    if name in {"qwen2moe", "qwen3moe"}:
        known = GGUF_CONFIG_MAPPING[name.replace("moe", "_moe")]
    if reads_by_conversion(name):
        return {}
    prefix = f"{name}."
    return {
        key: value
        for key, value in header.metadata.items()
        if key.startswith(prefix) and key.removeprefix(prefix) not in known
    }
