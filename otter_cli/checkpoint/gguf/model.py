"""The model that a GGUF file describes, as transformers reads it.

A file that a checkpoint folder cannot represent is refused by name. Otherwise the configuration and
an empty model are built without reading a tensor.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from otter_cli.checkpoint.gguf.header import DAMAGED_GGUF_HINT, GgufHeader, StringArray
from otter_cli.checkpoint.gguf.parts import write_gguf_header
from otter_cli.core.errors import OtterError
from otter_cli.core.library_errors import translate_library_errors
from otter_cli.core.strict_files import quoted


def read_by_transformers(what: str, source: Path) -> AbstractContextManager[None]:
    """OtterError for whatever the block raises, a panic of Rust code included."""
    return translate_library_errors(
        source,
        f"its {what}",
        library="transformers",
        hint="the file is damaged, or of a form that transformers does not import: use the "
        "model's safetensors checkpoint",
    )


_USE_SAFETENSORS_HINT = "import another file of the model, or use its safetensors checkpoint"
_BLOCK_NAME = re.compile(r"(?:^|\.)blk\.(\d+)\.")
_OTHER_KINDS = {
    "mmproj": "a multimodal projector, not a language model",
    "adapter": "a LoRA adapter, not a model",
    "imatrix": "an importance matrix, not a model",
    "vocab": "a vocabulary without a model",
}


def refuse_unsupported_gguf(headers: list[GgufHeader]) -> None:
    """OtterError when a model of these files cannot become a checkpoint folder."""
    first = headers[0]
    # Of split files only the first says what the model is.
    if not isinstance(first.metadata.get("general.architecture"), str):
        raise OtterError(
            f"{first.path}: the header names no general.architecture", hint=DAMAGED_GGUF_HINT
        )
    kind = first.metadata.get("general.type", "model")
    if first.architecture == "clip":
        kind = "mmproj"
    if kind in _OTHER_KINDS:
        raise OtterError(f"{first.path} is {_OTHER_KINDS[kind]}", hint="give the file of the model")
    _refuse_unknown_architecture(first)
    _refuse_rope_scaling(first)
    _refuse_unreadable_types(headers)
    _refuse_block_count(headers)


def _refuse_unknown_architecture(header: GgufHeader) -> None:
    name = header.architecture
    if name not in supported_architectures():
        known = ", ".join(supported_architectures())
        raise OtterError(
            f"{header.path}: the installed transformers does not import the architecture "
            f"{quoted(name)}",
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


def needs_whole_model(architecture: str) -> bool:
    """Whether transformers loads the architecture by newer code, which converts while it reads."""
    from transformers.integrations.gguf import GGUF_CONFIG_ARCHS

    return architecture in GGUF_CONFIG_ARCHS


def _refuse_rope_scaling(header: GgufHeader) -> None:
    """transformers' loader leaves scaled positions out, and the model would be another one."""
    name = header.architecture
    kind = header.metadata.get(f"{name}.rope.scaling.type", "none")
    if kind != "none" and name != "gpt-oss":
        raise OtterError(
            f"{header.path}: its rotary positions are scaled ({quoted(str(kind))}), which "
            "transformers' GGUF loader does not carry over",
            hint=_USE_SAFETENSORS_HINT,
        )


def _refuse_unreadable_types(headers: list[GgufHeader]) -> None:
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
                    f"{header.path}: tensor {quoted(tensor.name)} is of type {kind.name}, which "
                    f"the "
                    "gguf library cannot dequantise",
                    hint=_USE_SAFETENSORS_HINT,
                ) from error


def _refuse_block_count(headers: list[GgufHeader]) -> None:
    """A damaged count of layers must not make a model of a million of them."""
    first = headers[0]
    count = first.metadata.get(f"{first.architecture}.block_count")
    blocks = {
        int(match[1])
        for header in headers
        for name in header.tensors
        if (match := _BLOCK_NAME.search(name))
    }
    there = max(blocks, default=-1) + 1
    if not isinstance(count, int) or count != there:
        raise OtterError(
            f"{first.path}: the header speaks of {count} layers, the tensors make up {there}",
            hint=DAMAGED_GGUF_HINT,
        )


def count_quantised_types(headers: list[GgufHeader]) -> dict[str, dict[str, int]]:
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


def metadata_not_carried(header: GgufHeader) -> dict[str, Any]:
    """What the file says of its model that transformers' loader does not take over."""
    from transformers.integrations import GGUF_CONFIG_MAPPING

    name = header.architecture
    known = GGUF_CONFIG_MAPPING.get(name) or GGUF_CONFIG_MAPPING.get(name.replace("-", "_")) or {}
    if name in {"qwen2moe", "qwen3moe"}:
        known = GGUF_CONFIG_MAPPING[name.replace("moe", "_moe")]
    if needs_whole_model(name):
        return {}
    prefix = f"{name}."
    return {
        key: value
        for key, value in header.metadata.items()
        if key.startswith(prefix) and key.removeprefix(prefix) not in known
    }


# The vocabulary in all its forms. gguf's reader makes several objects of every text in it: for
# 262,144 tokens that is 700 MB and ten seconds, and the configuration needs only their number.
_VOCABULARY_KEYS = {
    f"tokenizer.ggml.{name}" for name in ("tokens", "scores", "token_type", "merges")
}  # fmt: skip


@dataclass(frozen=True)
class ModelDescription:
    """`raw` is the configuration as transformers' loader makes it; `config` and `model` are
    transformers' own objects, the model without values."""

    raw: dict[str, Any]
    config: Any
    model: Any

    @contextmanager
    def known_to_transformers(self) -> Iterator[None]:
        """Inside, transformers takes the configuration from here when it looks for a tokenizer.

        AutoTokenizer would read the whole file by gguf's reader for it, the vocabulary included.
        """
        from transformers import modeling_gguf_pytorch_utils as loader

        usual = loader.load_gguf_checkpoint
        loader.load_gguf_checkpoint = lambda path, **options: {"config": dict(self.raw)}
        try:
            yield
        finally:
            loader.load_gguf_checkpoint = usual


def describe_model(header: GgufHeader, dtype: str) -> ModelDescription:
    """The configuration and an empty model; OtterError when the file describes none."""
    import torch

    with read_by_transformers("configuration", header.path):
        raw = _raw_config(header)
        # A name for people, which transformers would write into config.json as a path.
        raw.pop("_model_name_or_path", None)
        config = _model_config(raw)
        cls = _model_class(config, header)
        config.architectures = [cls.__name__]
        config.dtype = dtype
        with torch.device("meta"):
            model = cls._from_config(config) if hasattr(cls, "_from_config") else cls(config)
    return ModelDescription(raw, config, model)


def _raw_config(header: GgufHeader) -> dict[str, Any]:
    from transformers import PreTrainedConfig

    if needs_whole_model(header.architecture):
        path = header.path
        raw, _ = PreTrainedConfig.get_config_dict(str(path.parent), gguf_file=path.name)
        return dict(raw)
    with _without_vocabulary(header) as stub:
        raw, _ = PreTrainedConfig.get_config_dict(str(stub.parent), gguf_file=stub.name)
    tokens = header.metadata.get("tokenizer.ggml.tokens")
    if "vocab_size" not in raw and isinstance(tokens, StringArray):
        raw["vocab_size"] = tokens.length
    return dict(raw)


@contextmanager
def _without_vocabulary(header: GgufHeader) -> Iterator[Path]:
    """A file with the header's entries and tensor table, and holes in place of all else."""
    keys = tuple(key for key in header.entries if key not in _VOCABULARY_KEYS)
    folder = Path(tempfile.mkdtemp(prefix="otter-gguf-"))
    try:
        stub = folder / "header.gguf"
        with open(stub, "xb") as out:
            out.truncate(write_gguf_header(out, header, keys, [header]))
        yield stub
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _model_config(raw: dict[str, Any]) -> Any:
    from transformers import CONFIG_MAPPING

    kind = raw.get("model_type")
    if kind not in CONFIG_MAPPING:
        raise OtterError(
            f"transformers has no model of the type {kind!r}, which the file describes",
            hint="use the model's safetensors checkpoint, with code of its own",
        )
    return CONFIG_MAPPING[kind].from_dict(raw)


def _model_class(config: Any, header: GgufHeader) -> Any:
    """The class that writes text, or else the one that the configuration names."""
    import transformers

    for auto in (transformers.AutoModelForCausalLM, transformers.AutoModelForSeq2SeqLM):
        if type(config) in auto._model_mapping:
            return auto._model_mapping[type(config)]
    for name in config.architectures or ():
        if hasattr(transformers, name):
            return getattr(transformers, name)
    raise OtterError(
        f"{header.path}: transformers has no language model for {header.architecture}",
        hint="give the file of a language model",
    )
