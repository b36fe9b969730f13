"""A checkpoint folder on disk: which of its files are the base's, its configuration, its tensors.

File names decide which files are weights, which define the model, and which were added by otter or
by downloaders. Opening a folder reads headers, never tensors, and refuses what is not a sound
safetensors checkpoint.
"""

import os
import re
from collections import Counter
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from otter_cli.checkpoint.dtypes import FLOAT_DTYPES
from otter_cli.checkpoint.safetensors_reader import ShardedTensors, TensorInfo
from otter_cli.core.errors import OtterError, from_os_error
from otter_cli.core.strict_files import read_json_object, regular_size, resolve_inside

GGUF_MAGIC = b"GGUF"
# Folders of git and of the hub's downloader.
_BOOKKEEPING = {".git", ".cache"}

MANIFEST = "otter.json"

# A tokenizer has about 30 MB, and no larger file than this belongs to a model.
_MAX_OTHER_FILE_BYTES = 1_000_000_000

# Files that transformers reads by their names. A change in one of them changes the model.
_MODEL_DEFINING = (
    "*.safetensors", "*.safetensors.index.json", "*.bin", "*.bin.index.json", "*.py", "*.jinja",
    "config.json", "generation_config.json", "adapter_config.json", "tokenizer*", "vocab*",
    "merges.txt", "special_tokens_map.json", "added_tokens.json", "chat_template*", "*.model",
)  # fmt: skip
# Weights in any format. Only safetensors are read.
_WEIGHT_SUFFIXES = (
    ".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".msgpack", ".h5", ".onnx", ".onnx_data",
    ".gguf", ".tflite", ".ot",
)  # fmt: skip

# Written by `otter import`, before anything is grafted, so it belongs to the base.
IMPORT_RECORD = "otter.import.json"

# The inserted tensors, whole or in shards, the manifest, and leftovers of a killed writer.
_OTTER_FILES = re.compile(
    r"otter\..*|otter(-[ab])?(-\d{5}-of-\d{5})?\.safetensors(\.index\.json)?"
    r"|\..*\.otter-(lock|staging)"
)


def is_otter_file(file: str) -> bool:
    """Whether grafting or training adds a file of this relative path to a base."""
    top, _, rest = file.partition("/")
    if file == IMPORT_RECORD:
        return False
    return top == "training" if rest else bool(_OTTER_FILES.fullmatch(top))


def is_model_defining(file: str) -> bool:
    """Whether transformers reads a file of this name, so that it defines the model."""
    return any(fnmatch(file, pattern) for pattern in _MODEL_DEFINING)


def is_weights(file: str) -> bool:
    """Whether a file of this name holds weights. Only weights are linked, and may be large."""
    return file.endswith(_WEIGHT_SUFFIXES)


def list_base_files(folder: Path) -> list[str]:
    """Sorted relative paths of all files but otter's. Raises OtterError for a link that leads
    outside, and for a file that is too large."""

    def refuse_unreadable(error: OSError) -> None:
        raise error

    all_files = []
    for parent, folders, files in os.walk(folder, onerror=refuse_unreadable):
        path = Path(parent)
        folders[:] = [name for name in folders if path != folder or name not in _BOOKKEEPING]
        for name in folders:
            if (path / name).is_symlink():
                raise OtterError(
                    f"{path / name} is a link to a folder, which is not followed",
                    hint="put the folder itself there",
                )
        all_files += [(path / name).relative_to(folder).as_posix() for name in files]
    base = sorted(file for file in all_files if not is_otter_file(file))
    for file in base:
        real, path = resolve_inside(folder, file), folder / file
        _refuse_large(path, regular_size(real, path))
    return base


def _refuse_large(path: Path, size: int) -> None:
    """Every file of a base is hashed. Weights may have any size, but not holes, which cost nothing
    to make and much to hash."""
    if size <= _MAX_OTHER_FILE_BYTES:
        return
    if not is_weights(path.name):
        raise OtterError(
            f"{path}: {size:,} bytes is over the limit of {_MAX_OTHER_FILE_BYTES:,} for a file "
            "that holds no weights",
            hint="move it out of the folder",
        )
    if not path.name.endswith(".safetensors") and path.stat().st_blocks * 512 < size // 8:
        raise OtterError(
            f"{path}: most of its {size:,} bytes are holes",
            hint="move it out of the folder, or fetch it again",
        )


_STEM = "model"
_PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")

# Files that transformers reads beside config.json. tokenizer.json has too many entries to check.
_CHECKED_JSON_FILES = {
    "generation_config.json", "tokenizer_config.json", "special_tokens_map.json",
    "added_tokens.json", "chat_template.json", "adapter_config.json",
}  # fmt: skip
_DEPTH_KEYS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
_WIDTH_KEYS = (
    "hidden_size", "n_embd", "d_model", "intermediate_size", "n_inner", "ffn_dim", "vocab_size",
    "num_attention_heads", "n_head", "num_key_value_heads", "head_dim", "num_experts",
    "num_local_experts", "n_routed_experts",
)  # fmt: skip
# Quantised weights are packed, and may be stored in this many times fewer elements.
_MAX_PACKING = 64


class Checkpoint:
    """A base model's folder, or a grafted one without otter's files.

    Opening reads headers, never tensors, and checks everything that the headers show.
    """

    def __init__(
        self, path: Path, config: dict[str, Any], files: list[str], weights: ShardedTensors
    ) -> None:
        self.path = path
        self.config = config
        self.files = files
        self.weights = weights
        self.tensors: dict[str, TensorInfo] = weights.tensors
        self.file_of: dict[str, str] = weights.file_of
        self.weight_files = list(weights.files)
        self.read = weights.read
        self.read_raw = weights.read_raw

    @classmethod
    def open(cls, path: str | Path, *, allow_otter: bool = True) -> "Checkpoint":
        """Raises OtterError for a folder that is not a sound safetensors checkpoint and, without
        `allow_otter`, for one that is already grafted."""
        path = Path(path)
        try:
            _refuse_missing_folder(path)
            if not allow_otter:
                _refuse_grafted(path)
            files = list_base_files(path)
            if not (path / "config.json").exists():
                raise OtterError(
                    f"{path} is not a checkpoint: it has no config.json",
                    hint="give the folder of a transformers model, with config.json and "
                    "model.safetensors",
                )
            config = read_json_object(
                resolve_inside(path, "config.json"), str(path / "config.json")
            )
            _refuse_without_weights(path, files)
            weights = ShardedTensors.open(path, _STEM)
            _refuse_impossible_sizes(path, config, weights)
            for file in _CHECKED_JSON_FILES & {*files}:
                read_json_object(resolve_inside(path, file), str(path / file))
        except OSError as error:
            raise from_os_error(error, f"read {path}") from error
        if not weights.tensors:
            raise OtterError(f"{path} holds no tensors", hint="fetch the folder again")
        return cls(path, config, files, weights)

    @property
    def dtype(self) -> str:
        """The dtype in which most parameters are stored, without masks and packed weights."""
        counts: Counter[str] = Counter()
        floats = [info for info in self.tensors.values() if info.dtype in FLOAT_DTYPES]
        for info in floats or self.tensors.values():
            counts[info.dtype] += info.count
        return max(counts, key=lambda dtype: counts[dtype])


def _refuse_impossible_sizes(path: Path, config: dict[str, Any], weights: ShardedTensors) -> None:
    """A configuration without the tensors for it could make a loader build a huge model."""
    largest_size = max((n for info in weights.tensors.values() for n in info.shape), default=0)
    text_config = config.get("text_config")
    for table in (config, text_config if isinstance(text_config, dict) else {}):
        limits = dict.fromkeys(_DEPTH_KEYS, len(weights.tensors))
        limits |= dict.fromkeys(_WIDTH_KEYS, _MAX_PACKING * largest_size)
        for key, limit in limits.items():
            value = table.get(key)
            if isinstance(value, int) and value > limit:
                raise OtterError(
                    f"{path}: config.json: {key} is {value:,}, and the "
                    f"{len(weights.tensors)} tensors are too few or too small for that",
                    hint="the configuration is damaged, or belongs to another checkpoint",
                )


def _refuse_missing_folder(path: Path) -> None:
    if not path.exists():
        raise OtterError(f"{path} does not exist", hint="check the path")
    refuse_gguf(path)
    if not path.is_dir():
        raise OtterError(f"{path} is not a folder", hint="give the folder that holds config.json")


def _refuse_grafted(path: Path) -> None:
    if (path / "otter.json").exists():
        if not (path / "config.json").exists():
            raise OtterError(
                f"{path} is an adapter, without its base",
                hint=f"otter attach {path} BASE OUT makes a grafted folder of both",
            )
        raise OtterError(
            f"{path} is grafted already",
            hint="graft onto its base; `otter strip` restores the base",
        )
    for name in sorted(child.name for child in path.iterdir()):
        if is_otter_file(name) or name == "training":
            raise OtterError(
                f"{path}: {name} is a name that otter uses for its own files",
                hint="rename it, or leave it out",
            )


def _refuse_without_weights(path: Path, files: list[str]) -> None:
    if f"{_STEM}.safetensors" in files or f"{_STEM}.safetensors.index.json" in files:
        return
    shards = [file for file in files if file.endswith(".safetensors")]
    pickled = [file for file in files if file.endswith(_PICKLE_SUFFIXES)]
    if "adapter_config.json" in files:
        what, hint = "holds an adapter, not a model", "merge the adapter into its base first"
    elif shards:
        what = f"has {shards[0]}, but neither model.safetensors nor its index"
        hint = "fetch model.safetensors.index.json too, or rename a single file"
    elif pickled:
        what = f"has pickled weights only ({pickled[0]}), which can run code when read"
        hint = (
            "convert a trusted one: AutoModelForCausalLM.from_pretrained(PATH, dtype='auto')"
            ".save_pretrained(NEW)"
        )
    else:
        what, hint = "has no model.safetensors", "the folder is incomplete: fetch it again"
    raise OtterError(f"{path} {what}", hint=hint)


def looks_like_gguf(path: Path) -> bool:
    """Whether `path` is a file with the name or the first bytes of a GGUF file."""
    if not path.is_file():
        return False
    if path.name.endswith(".gguf") or ".gguf.part" in path.name:
        return True
    try:
        with open(path, "rb") as file:
            return file.read(4) == GGUF_MAGIC
    except OSError:
        return False


def refuse_gguf(path: Path) -> None:
    """Raises OtterError, with the command to run, where `path` is a GGUF file, or a folder that
    holds one and no checkpoint."""
    source = path
    if path.is_dir():
        if (path / "config.json").exists():
            return
        files = sorted(file for file in path.iterdir() if looks_like_gguf(file))
        if not files:
            return
        source = files[0]
        what = f"{path} holds a GGUF file and no checkpoint"
    elif looks_like_gguf(path):
        what = f"{path} is a GGUF file, not a checkpoint folder"
    else:
        return
    # The file's name, without the part that says how it is stored.
    out = source.name.partition(".gguf")[0].partition("-00")[0] + "-imported"
    raise OtterError(what, hint=f"import it first: otter import {source} {out}")
