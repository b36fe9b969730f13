"""The model that a GGUF file describes: its configuration, and the names of its tensors."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from otter_cli.checkpoint.gguf.header import GgufHeader, StringArray
from otter_cli.checkpoint.gguf.parts import write_header
from otter_cli.checkpoint.gguf.reading import read_by_transformers
from otter_cli.checkpoint.gguf.refused import reads_by_conversion
from otter_cli.core.errors import OtterError

# The vocabulary in all its forms. gguf's reader makes several objects of every text in it: for
# 262,144 tokens that is 700 MB and ten seconds, and the configuration needs only their number.
_VOCABULARY = {
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
        config = _config(raw)
        cls = _model_class(config, header)
        config.architectures = [cls.__name__]
        config.dtype = dtype
        with torch.device("meta"):
            model = cls._from_config(config) if hasattr(cls, "_from_config") else cls(config)
    return ModelDescription(raw, config, model)


def _raw_config(header: GgufHeader) -> dict[str, Any]:
    from transformers import PreTrainedConfig

    if reads_by_conversion(header.architecture):
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
    keys = tuple(key for key in header.entries if key not in _VOCABULARY)
    folder = Path(tempfile.mkdtemp(prefix="otter-gguf-"))
    try:
        stub = folder / "header.gguf"
        with open(stub, "xb") as out:
            out.truncate(write_header(out, header, keys, [header]))
        yield stub
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _config(raw: dict[str, Any]) -> Any:
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
