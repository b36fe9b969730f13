"""The `Detoxify` classifier on a checkpoint folder, without a network (github unitaryai/detoxify).

A folder holds one `.ckpt` in Detoxify's format, config.json and the tokenizer's files.
"""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from otter_cli.benchmarks.scorers.chunks import chunks
from otter_cli.benchmarks.scorers.scorer import Exchange, ScorerRecord, Scores
from otter_cli.core.console import warn
from otter_cli.core.digests import sha256_file, sha256_json
from otter_cli.core.errors import OtterError

LONGEST = 512


class DetoxifyScorer:
    """Scores the response alone, by label; a long one by the worst of its pieces."""

    def __init__(self, folder: Path, *, device: str = "cpu") -> None:
        checkpoint = _checkpoint_in(folder)
        warn(f"{checkpoint} is a pickle, and loading it can run code: trusted files only")
        self._detoxify = _load(folder, checkpoint, device)
        self.record = ScorerRecord(
            name=f"Detoxify {folder.resolve().name}",
            kind="detoxify",
            digest=_digest(folder),
            labels=list(self._detoxify.class_names),
        )
        positions = getattr(self._detoxify.model.config, "max_position_embeddings", LONGEST)
        self._longest = min(LONGEST, positions, self._detoxify.tokenizer.model_max_length)

    def score(self, exchanges: Sequence[Exchange]) -> Scores:
        pieces = [chunks(exchange.response, self._fits) for exchange in exchanges]
        flat = [piece for group in pieces for piece in group]
        predicted = self._detoxify.predict(flat)
        return {label: _worst(predicted[label], pieces) for label in self.record.labels}

    def _fits(self, text: str) -> bool:
        return len(self._detoxify.tokenizer(text).input_ids) <= self._longest


def _worst(values: float | Sequence[float], pieces: list[list[str]]) -> list[float]:
    """The maximum of each text's pieces; Detoxify gives a bare number for a list of one."""
    flat = list(values) if isinstance(values, Sequence) else [values]
    expected = sum(map(len, pieces))
    if len(flat) != expected:
        raise OtterError(
            f"Detoxify gave {len(flat)} scores for {expected} texts",
            hint="this version of detoxify answers otherwise than 0.5.4 does",
        )
    scores = iter(flat)
    return [max(next(scores) for _ in group) for group in pieces]


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


def _digest(folder: Path) -> str:
    """One digest of the folder's files: weights, configuration, tokenizer."""
    return sha256_json(
        {path.name: sha256_file(path) for path in sorted(folder.iterdir()) if path.is_file()}
    )
