"""The `Detoxify` classifier (github unitaryai/detoxify): strict loading, and a scorer of responses.

A folder holds one `.ckpt` in Detoxify's format, config.json and the tokenizer's files. Nothing is
downloaded for it. Code in a checkpoint's pickle runs only with --allow-pickle. A long response is
scored in overlapping pieces, and gets the largest score of them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from otter_cli.core.console import warn
from otter_cli.core.digests import sha256_file, sha256_json
from otter_cli.core.errors import OtterError
from otter_cli.core.library_errors import short_message, translate_library_errors
from otter_cli.core.strict_files import regular_size
from otter_cli.scorers.scorer import Exchange, ScorerRecord, Scores

# Whether the command line has --allow-pickle. No file can set it.
_PICKLE_ALLOWED: ContextVar[bool] = ContextVar("pickle_allowed", default=False)
# Detoxify renames the classes of its checkpoints in the same way.
_CLASS_NAMES = {
    "toxic": "toxicity",
    "identity_hate": "identity_attack",
    "severe_toxic": "severe_toxicity",
}
_DESCRIPTION = "the Detoxify checkpoint"
_FORMAT_HINT = "the folder needs a .ckpt in Detoxify's format, config.json and tokenizer files"


@contextmanager
def pickle_allowed(allowed: bool) -> Iterator[None]:
    """Inside, with `allowed`, loading a checkpoint may run the code in its pickle."""
    token = _PICKLE_ALLOWED.set(allowed)
    try:
        yield
    finally:
        _PICKLE_ALLOWED.reset(token)


def load_detoxify(folder: Path, device: str) -> Any:
    """Detoxify's own class over a strictly loaded model. Its own loader is not used, since it
    unpickles anything, and draws missing tensors at random.

    Raises OtterError for a folder without a Detoxify checkpoint.
    """
    from detoxify import Detoxify

    from otter_cli.model.load import load_tokenizer

    checkpoint = _checkpoint_in(folder)
    classes, arguments, tensors = _checkpoint_parts(checkpoint, _read_checkpoint(checkpoint))
    model = _load_model(folder, checkpoint, len(classes), arguments, tensors).to(device)
    tokenizer = load_tokenizer(folder, _tokenizer_class(checkpoint, arguments))
    return _make_detoxify(Detoxify, model, tokenizer, classes, device)


def load_released_detoxify(device: str) -> Any:
    """Detoxify's `original` model, from torch's download cache or the network. The file must have
    the digest in its name. Its configuration comes from the hub."""
    import torch
    from detoxify import Detoxify
    from detoxify.detoxify import MODEL_URLS, get_model_and_tokenizer

    url = MODEL_URLS["original"]
    checkpoint = Path(torch.hub.get_dir(), "checkpoints", url.rpartition("/")[2])
    digest = checkpoint.stem.rpartition("-")[2]
    try:
        if not checkpoint.exists():
            checkpoint.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(url, str(checkpoint), digest)
        if not sha256_file(checkpoint).startswith(digest):
            raise OSError(f"{checkpoint} is not the released file: remove it")
        classes, arguments, tensors = _checkpoint_parts(checkpoint, _read_checkpoint(checkpoint))
        _model_class(checkpoint, arguments)
        _tokenizer_class(checkpoint, arguments)
        model, tokenizer = get_model_and_tokenizer(**arguments, state_dict=tensors)
    except (OSError, RuntimeError, ValueError) as error:
        raise OtterError(
            f"Detoxify's released model cannot be loaded: {type(error).__name__}: "
            f"{str(error).partition(chr(10))[0]}",
            hint="it is downloaded on first use; offline, give the folder of a Detoxify checkpoint",
        ) from error
    if missing := sorted(model.state_dict().keys() - tensors.keys()):
        raise OtterError(
            f"{checkpoint} loads with missing keys: {', '.join(missing[:3])}", hint=_FORMAT_HINT
        )
    return _make_detoxify(Detoxify, model.to(device), tokenizer, classes, device)


def _make_detoxify(kind: Any, model: Any, tokenizer: Any, classes: list[str], device: str) -> Any:
    detoxify = kind.__new__(kind)
    detoxify.model, detoxify.tokenizer, detoxify.device = model, tokenizer, device
    detoxify.class_names = [_CLASS_NAMES.get(name, name) for name in classes]
    return detoxify


def files_digest(folder: Path) -> str:
    """One digest of the folder's files: weights, configuration, tokenizer."""
    return sha256_json(
        {path.name: sha256_file(path) for path in sorted(folder.iterdir()) if path.is_file()}
    )


def _read_checkpoint(checkpoint: Path) -> Any:
    """The content of the file: tensors, numbers, texts and containers; other objects only with
    --allow-pickle."""
    import pickle

    import torch

    regular_size(checkpoint)
    with translate_library_errors(checkpoint, _DESCRIPTION, library="torch", hint=_FORMAT_HINT):
        try:
            return torch.load(checkpoint, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            if not _is_pickle(checkpoint):
                raise _no_checkpoint(
                    checkpoint, "it is neither a zip archive nor a pickle"
                ) from error
            if not _PICKLE_ALLOWED.get():
                raise _not_plain(checkpoint, error) from error
        warn(f"{checkpoint} is a pickle that holds code, and --allow-pickle runs it")
        return torch.load(checkpoint, map_location="cpu", weights_only=False)


def _is_pickle(checkpoint: Path) -> bool:
    """Whether it begins as a zip archive or as a pickle. Files of torch are one of them."""
    with open(checkpoint, "rb") as file:
        return file.read(2) in (b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")


def _not_plain(checkpoint: Path, error: Exception) -> OtterError:
    named = re.search(r"GLOBAL (\S+)", str(error))
    what = f"{named[1]} of Python" if named else "objects of Python"
    return OtterError(
        f"{checkpoint} holds more than tensors, numbers and texts: {what}; loading it can run code",
        hint="a file that you trust: give --allow-pickle, or load it once with torch and save "
        "its config and state_dict alone",
    )


def _no_checkpoint(checkpoint: Path, why: str) -> OtterError:
    return OtterError(
        f"{checkpoint} does not load as a Detoxify checkpoint: {why}", hint=_FORMAT_HINT
    )


def _checkpoint_parts(
    checkpoint: Path, loaded: Any
) -> tuple[list[str], dict[str, Any], dict[str, Any]]:
    """The names of the classes, the arguments of the architecture, and the tensors."""
    import torch

    try:
        classes = [str(name) for name in loaded["config"]["dataset"]["args"]["classes"]]
        arguments = dict(loaded["config"]["arch"]["args"])
        tensors = {str(name): tensor for name, tensor in loaded["state_dict"].items()}
        if not all(isinstance(tensor, torch.Tensor) for tensor in tensors.values()):
            raise TypeError("its state_dict holds more than tensors")
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise _no_checkpoint(checkpoint, short_message(error)) from error
    return classes, arguments, tensors


def _load_model(
    folder: Path,
    checkpoint: Path,
    classes: int,
    arguments: dict[str, Any],
    tensors: dict[str, Any],
) -> Any:
    from otter_cli.model.load import load_config, load_state_dict_strictly

    kind = _model_class(checkpoint, arguments)
    config = load_config(folder)
    if not isinstance(config, kind.config_class) or config.num_labels != classes:
        raise OtterError(
            f"{folder}: config.json is of a {config.model_type} with {config.num_labels} labels, "
            f"and the checkpoint is a {kind.__name__} with {classes}",
            hint=_FORMAT_HINT,
        )
    what = "the Detoxify classifier"
    return load_state_dict_strictly(checkpoint, kind, config, tensors, what=what)


def _model_class(checkpoint: Path, arguments: dict[str, Any]) -> Any:
    """The class that the checkpoint names. It must be a sequence classifier of transformers."""
    import transformers

    name = str(arguments.get("model_name"))
    kind = getattr(transformers, name, None) if name.endswith("ForSequenceClassification") else None
    if not (isinstance(kind, type) and issubclass(kind, transformers.PreTrainedModel)):
        raise OtterError(
            f"{checkpoint} names {name!r} as its model, which is no classifier of transformers",
            hint=_FORMAT_HINT,
        )
    return kind


def _tokenizer_class(checkpoint: Path, arguments: dict[str, Any]) -> Any:
    import transformers

    name = str(arguments.get("tokenizer_name"))
    kind = getattr(transformers, name, None)
    if not (isinstance(kind, type) and issubclass(kind, transformers.PreTrainedTokenizerBase)):
        raise OtterError(
            f"{checkpoint} names {name!r} as its tokenizer, which transformers does not have",
            hint=_FORMAT_HINT,
        )
    return kind


def _checkpoint_in(folder: Path) -> Path:
    checkpoints = sorted(folder.glob("*.ckpt"))
    if len(checkpoints) != 1 or not (folder / "config.json").is_file():
        what = f"{len(checkpoints)} .ckpt files" if checkpoints else "no .ckpt file"
        what = what if len(checkpoints) != 1 else "no config.json"
        raise OtterError(
            f"{folder} is no Detoxify folder: {what} in it",
            hint="it needs one .ckpt in Detoxify's format, config.json and the tokenizer's files",
        )
    return checkpoints[0]


# Characters that two pieces share, so that words at the cut are whole in one of them.
OVERLAP = 100


def split_to_fit(text: str, fits: Callable[[str], bool]) -> list[str]:
    """Halves `text` until each piece fits. Nothing is left out."""
    if len(text) < 8 or fits(text):
        return [text]
    middle, overlap = len(text) // 2, min(OVERLAP, len(text) // 8)
    left = text[: _word_end(text, middle + overlap)]
    right = text[_word_start(text, middle - overlap) :]
    return split_to_fit(left, fits) + split_to_fit(right, fits)


def _word_end(text: str, at: int) -> int:
    """The first space after `at`, where one is near, so that no word is cut."""
    gap = text.find(" ", at, at + len(text) // 8)
    return at if gap < 0 else gap


def _word_start(text: str, at: int) -> int:
    gap = text.rfind(" ", at - len(text) // 8, at)
    return at if gap < 0 else gap + 1


MAX_TOKENS = 512


class DetoxifyScorer:
    """Scores the response alone, by label. A long one gets the largest score of its pieces."""

    def __init__(self, folder: Path, *, device: str = "cpu") -> None:
        self._detoxify = load_detoxify(folder, device)
        self.record = ScorerRecord(
            name=f"Detoxify {folder.resolve().name}",
            kind="detoxify",
            digest=files_digest(folder),
            labels=list(self._detoxify.class_names),
        )
        positions = getattr(self._detoxify.model.config, "max_position_embeddings", MAX_TOKENS)
        self._longest = min(MAX_TOKENS, positions, self._detoxify.tokenizer.model_max_length)

    def score(self, exchanges: Sequence[Exchange]) -> Scores:
        pieces = [split_to_fit(exchange.response, self._fits) for exchange in exchanges]
        flat = [piece for group in pieces for piece in group]
        rows = iter(predict_rows(self._detoxify, flat))
        worst = [list(map(max, zip(*(next(rows) for _ in group), strict=True))) for group in pieces]
        return {label: [row[i] for row in worst] for i, label in enumerate(self.record.labels)}

    def _fits(self, text: str) -> bool:
        return len(self._detoxify.tokenizer(text).input_ids) <= self._longest


def predict_rows(detoxify: Any, texts: Sequence[str]) -> list[list[float]]:
    """The score of each class, a row for each text. Raises OtterError for a wrong number."""
    predicted = detoxify.predict(list(texts))
    columns = [predicted[name] for name in detoxify.class_names]
    # For a list of one text Detoxify gives a bare number.
    columns = [c if isinstance(c, Sequence) or hasattr(c, "tolist") else [c] for c in columns]
    for column in columns:
        if len(column) != len(texts):
            raise OtterError(
                f"Detoxify gave {len(column)} scores for {len(texts)} texts",
                hint="this version of detoxify answers otherwise than 0.5.4 does",
            )
    return [[float(value) for value in row] for row in zip(*columns, strict=True)]
