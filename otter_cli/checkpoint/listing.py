"""Which files of a folder are the base's own."""

import os
import re
from fnmatch import fnmatch
from pathlib import Path

from otter_cli.checkpoint.links import resolve_inside
from otter_cli.checkpoint.strict_json import regular_size
from otter_cli.core.errors import OtterError

# Left by git and by the hub's downloader: bookkeeping, not the checkpoint.
_BOOKKEEPING = {".git", ".cache"}

MANIFEST = "otter.json"

# Bytes: a tokenizer has some 30 MB, and what is larger is no part of a model.
_LARGE = 1_000_000_000

# What transformers reads by its name: a change in one of these changes what a folder says.
_DECIDE = (
    "*.safetensors", "*.safetensors.index.json", "*.bin", "*.bin.index.json", "*.py", "*.jinja",
    "config.json", "generation_config.json", "adapter_config.json", "tokenizer*", "vocab*",
    "merges.txt", "special_tokens_map.json", "added_tokens.json", "chat_template*", "*.model",
)  # fmt: skip
# Weights in any format: safetensors are read, the others lie beside them.
_WEIGHTS = (
    ".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".msgpack", ".h5", ".onnx", ".onnx_data",
    ".gguf", ".tflite", ".ot",
)  # fmt: skip

# Written by `otter import`, before anything is grafted: it belongs to the base, and stays with it.
IMPORT_RECORD = "otter.import.json"

# The inserted tensors, whole or in shards, the manifest, and what a killed writer leaves.
_OURS = re.compile(
    r"otter\..*|otter(-[ab])?(-\d{5}-of-\d{5})?\.safetensors(\.index\.json)?"
    r"|\..*\.otter-(lock|staging)"
)


def is_ours(file: str) -> bool:
    """Whether a file's relative path is one that grafting or training adds to a base."""
    top, _, rest = file.partition("/")
    if file == IMPORT_RECORD:
        return False
    return top == "training" if rest else bool(_OURS.fullmatch(top))


def decides(file: str) -> bool:
    """Whether transformers reads a file of this name, so that it decides what a folder says."""
    return any(fnmatch(file, pattern) for pattern in _DECIDE)


def is_weights(file: str) -> bool:
    """Whether a file holds weights by its name: these alone are linked, and may be large."""
    return file.endswith(_WEIGHTS)


def base_files(folder: Path) -> list[str]:
    """Relative paths of every file that is not ours, sorted; each really is a file in here."""
    found = []
    for where, folders, files in os.walk(folder, onerror=_refuse_unreadable):
        here = Path(where)
        folders[:] = [name for name in folders if here != folder or name not in _BOOKKEEPING]
        _refuse_linked_folders(here, folders)
        found += [(here / name).relative_to(folder).as_posix() for name in files]
    base = sorted(file for file in found if not is_ours(file))
    for file in base:
        real, path = resolve_inside(folder, file), folder / file
        _refuse_large(path, regular_size(real, path))
    return base


def _refuse_large(path: Path, size: int) -> None:
    """Every file of a base is hashed. Weights are as large as they are, but for holes, which cost
    whoever made them nothing."""
    if size <= _LARGE:
        return
    if not is_weights(path.name):
        raise OtterError(
            f"{path}: {size:,} bytes is over the limit of {_LARGE:,} for a file that holds no "
            "weights",
            hint="move it out of the folder",
        )
    if not path.name.endswith(".safetensors") and path.stat().st_blocks * 512 < size // 8:
        raise OtterError(
            f"{path}: most of its {size:,} bytes are holes",
            hint="move it out of the folder, or fetch it again",
        )


def _refuse_linked_folders(here: Path, folders: list[str]) -> None:
    for name in folders:
        if (here / name).is_symlink():
            raise OtterError(
                f"{here / name} is a link to a folder, which is not followed",
                hint="put the folder itself there",
            )


def _refuse_unreadable(error: OSError) -> None:
    raise error
