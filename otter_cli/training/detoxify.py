"""The `Detoxify` classifier on a checkpoint folder, without a network (github unitaryai/detoxify).

A folder holds one `.ckpt` in Detoxify's format, config.json and the tokenizer's files.
"""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from otter_cli.core.console import warn
from otter_cli.core.digests import sha256_file, sha256_json
from otter_cli.core.errors import OtterError


def load_detoxify(folder: Path, device: str) -> Any:
    """The library's own class, strictly loaded. Raises OtterError for a folder that is not one of
    its checkpoints'."""
    checkpoint = _checkpoint_in(folder)
    warn(f"{checkpoint} is a pickle, and loading it can run code: trusted files only")
    return _load(folder, checkpoint, device)


def files_digest(folder: Path) -> str:
    """One digest of the folder's files: weights, configuration, tokenizer."""
    return sha256_json(
        {path.name: sha256_file(path) for path in sorted(folder.iterdir()) if path.is_file()}
    )


def _load(folder: Path, checkpoint: Path, device: str) -> Any:
    import torch
    from detoxify import Detoxify

    try:
        loaded = torch.load(checkpoint, map_location="cpu", weights_only=False)
        with _pointing_at(folder, loaded) as copy:
            detoxify = Detoxify(
                checkpoint=str(copy), device=device, huggingface_config_path=str(folder)
            )
    except Exception as error:
        raise OtterError(
            f"{checkpoint} does not load as a Detoxify checkpoint: "
            f"{type(error).__name__}: {str(error).partition(chr(10))[0]}",
            hint="the folder needs a .ckpt in Detoxify's format, config.json and tokenizer files",
        ) from error
    _require_weights(detoxify.model, loaded["state_dict"], checkpoint)
    return detoxify


@contextmanager
def _pointing_at(folder: Path, loaded: dict[str, Any]) -> Iterator[Path]:
    """A copy of the checkpoint whose `model_type` is `folder`: else Detoxify asks the hub."""
    import torch

    loaded["config"]["arch"]["args"]["model_type"] = str(folder.resolve())
    with tempfile.TemporaryDirectory(prefix="otter-detoxify-") as temporary:
        copy = Path(temporary, "checkpoint.ckpt")
        torch.save(loaded, copy)
        yield copy


def _require_weights(model: Any, saved: dict[str, Any], checkpoint: Path) -> None:
    """transformers fills what a state dict lacks at random, with a warning at most."""
    missing = sorted(model.state_dict().keys() - saved.keys())
    if missing:
        raise OtterError(
            f"{checkpoint} lacks {len(missing)} tensors of its classifier, {missing[0]} first",
            hint="transformers would fill them at random; the checkpoint is not whole",
        )


def _checkpoint_in(folder: Path) -> Path:
    found = sorted(folder.glob("*.ckpt"))
    if len(found) != 1 or not (folder / "config.json").is_file():
        what = f"{len(found)} .ckpt files" if found else "no .ckpt file"
        what = what if len(found) != 1 else "no config.json"
        raise OtterError(
            f"{folder} is no Detoxify folder: {what} in it",
            hint="it needs one .ckpt in Detoxify's format, config.json and the tokenizer's files",
        )
    return found[0]
