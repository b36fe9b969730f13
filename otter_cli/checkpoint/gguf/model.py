"""The model that a GGUF file describes, as transformers reads it.

A file that cannot become a checkpoint folder is refused by name. Otherwise the configuration and an
empty model are built without reading a tensor.
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

from otter_cli.checkpoint.gguf.header import GgufHeader, StringArray, damaged_gguf
from otter_cli.checkpoint.gguf.parts import write_gguf_header
from otter_cli.checkpoint.gguf.rotary import rotary_scaling
from otter_cli.core.errors import OtterError
from otter_cli.core.library_errors import translate_library_errors
from otter_cli.core.strict_files import quoted


def read_by_transformers(what: str, source: Path) -> AbstractContextManager[None]:
    """Every error of the block becomes an OtterError, a panic of Rust code included."""
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
    """Raises OtterError where the model in these files cannot become a checkpoint folder."""
    first = headers[0]  # of split files, only the first describes the model
    if not isinstance(first.metadata.get("general.architecture"), str):
        raise damaged_gguf(first.path, "the header names no general.architecture")
    kind = first.metadata.get("general.type", "model")
    if first.architecture == "clip":
        kind = "mmproj"
    if kind in _OTHER_KINDS:
        raise OtterError(f"{first.path} is {_OTHER_KINDS[kind]}", hint="give the file of the model")
    name = first.architecture
    if name not in (known := supported_architectures()):
        raise OtterError(
            f"{first.path}: the installed transformers does not import the architecture "
            f"{quoted(name)}",
            hint=f"it imports {', '.join(known)}; or use the model's safetensors checkpoint",
        )
    scaling = first.metadata.get(f"{name}.rope.scaling.type", "none")
    if scaling != "none" and name != "gpt-oss":
        raise OtterError(
            f"{first.path}: its rotary positions are scaled ({quoted(str(scaling))}), and "
            "transformers' GGUF loader ignores that, so the model would be another one",
            hint=_USE_SAFETENSORS_HINT,
        )
    _refuse_unreadable_types(headers)
    _refuse_block_count(headers)


def supported_architectures() -> list[str]:
    """The values of general.architecture that transformers' GGUF loader accepts."""
    from transformers.integrations.gguf import GGUF_CONFIG_ARCHS
    from transformers.modeling_gguf_pytorch_utils import GGUF_SUPPORTED_ARCHITECTURES

    # The loader's list has its own names for some architectures, which differ from those in files.
    in_files = {"qwen2_moe": "qwen2moe", "qwen3_moe": "qwen3moe", "gpt_oss": "gpt-oss",
                "minimax_m2": "minimax-m2"}  # fmt: skip
    names = {in_files.get(name, name) for name in GGUF_SUPPORTED_ARCHITECTURES}
    return sorted(names - {"general", "tokenizer"} | set(GGUF_CONFIG_ARCHS))


def needs_whole_model(architecture: str) -> bool:
    """Whether transformers' newer code loads the architecture, which converts while it reads."""
    from transformers.integrations.gguf import GGUF_CONFIG_ARCHS

    return architecture in GGUF_CONFIG_ARCHS


def _refuse_unreadable_types(headers: list[GgufHeader]) -> None:
    """The gguf library must be able to dequantise every type."""
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
                    "the gguf library cannot dequantise",
                    hint=_USE_SAFETENSORS_HINT,
                ) from error


def _refuse_block_count(headers: list[GgufHeader]) -> None:
    """A damaged number of layers must not build a model of a million layers."""
    first = headers[0]
    count = first.metadata.get(f"{first.architecture}.block_count")
    blocks = {
        int(match[1])
        for header in headers
        for name in header.tensors
        if (match := _BLOCK_NAME.search(name))
    }
    layers = max(blocks, default=-1) + 1
    if not isinstance(count, int) or count != layers:
        what = f"the header speaks of {count} layers, the tensors make up {layers}"
        raise damaged_gguf(first.path, what)


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
    """The file's entries about its model that transformers' loader ignores."""
    from transformers.integrations import GGUF_CONFIG_MAPPING

    name = header.architecture
    if needs_whole_model(name):
        return {}
    known = GGUF_CONFIG_MAPPING.get(name) or GGUF_CONFIG_MAPPING.get(name.replace("-", "_")) or {}
    if name in {"qwen2moe", "qwen3moe"}:
        known = GGUF_CONFIG_MAPPING[name.replace("moe", "_moe")]
    prefix = f"{name}."
    return {
        key: value
        for key, value in header.metadata.items()
        if key.startswith(prefix) and key.removeprefix(prefix) not in known
    }


# The vocabulary in all its forms. gguf's reader makes several objects of each text. For 262,144
# tokens that takes 700 MB and ten seconds, and the configuration needs only their number.
_VOCABULARY_KEYS = {
    f"tokenizer.ggml.{name}" for name in ("tokens", "scores", "token_type", "merges")
}  # fmt: skip


@dataclass(frozen=True)
class ModelDescription:
    """`raw` is the configuration as transformers' loader reads it. `config` and `model` are
    transformers' own objects, the model without values."""

    raw: dict[str, Any]
    config: Any
    model: Any

    @contextmanager
    def known_to_transformers(self) -> Iterator[None]:
        """In the block, transformers reads the configuration from here when it loads a tokenizer.

        AutoTokenizer would otherwise read the whole file with gguf's reader, vocabulary included.
        """
        from transformers import modeling_gguf_pytorch_utils as loader

        original = loader.load_gguf_checkpoint
        loader.load_gguf_checkpoint = lambda path, **options: {"config": dict(self.raw)}
        try:
            yield
        finally:
            loader.load_gguf_checkpoint = original


def describe_model(header: GgufHeader, dtype: str) -> ModelDescription:
    """The configuration and an empty model. Raises OtterError where the file describes none."""
    import torch

    with read_by_transformers("configuration", header.path):
        raw = _raw_config(header)
        # The name of the model, which transformers would write into config.json as a path.
        raw.pop("_model_name_or_path", None)
        raw |= rotary_scaling(header, raw)
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
    """A file with the header's entries and tensor table, and holes in place of everything else."""
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
    """The class with a language-model head, or else the class that the configuration names."""
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
