"""Checks of token ids against the rows of the embedding.

An id at or beyond the vocabulary size has no row. A base with such an id in its tokenizer runs, but
a text that contains the id is refused.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from otter_cli.checkpoint.folder import Checkpoint
from otter_cli.core.errors import OtterError
from otter_cli.core.strict_files import read_json_object
from otter_cli.families.shape import BaseShape

_MAX_ID = 1 << 31
_GENERATION_CONFIG = "generation_config.json"
_BOS_EOS_KEYS = ("bos_token_id", "eos_token_id")


def token_id_error(base: Checkpoint, shape: BaseShape) -> str:
    """The fault that keeps transformers from building the base: an id that is no number, or a
    padding id without a row in the embedding. Empty where there is none."""
    for file, values in _configurations(base):
        for key in ("pad_token_id", *_BOS_EOS_KEYS):
            value = values.get(key)
            ids = value if isinstance(value, list) and key == "eos_token_id" else [value]
            sound = bool(ids) and all(type(i) is int and 0 <= i < _MAX_ID for i in ids)
            if value is not None and not sound:
                return f"{file}: {key} is {ascii(value)[:40]}, not a token's id"
    config, defaults = base.config, shape.family.defaults
    pad = config["pad_token_id"] if "pad_token_id" in config else defaults.get("pad_token_id")
    if type(pad) is int and not -shape.vocab <= pad < shape.vocab:
        return f"config.json: pad_token_id is {pad}, and the vocabulary ends at {shape.vocab - 1}"
    return ""


def token_id_warnings(base: Checkpoint, shape: BaseShape) -> Iterator[str]:
    """Warnings of ids in the configurations or the tokenizer that have no row in the embedding. The
    base runs without them, and `check_token_ids` refuses texts that contain them."""
    for file, values in _configurations(base):
        for key in _BOS_EOS_KEYS:
            value = values.get(key)
            for i in value if isinstance(value, list) else [value]:
                if type(i) is int and not 0 <= i < shape.vocab:
                    yield f"{file}: {key} {i} is no token: the vocabulary has {shape.vocab}"
    beyond = sorted(i for i in _tokenizer_ids(base) if i >= shape.vocab)
    if beyond:
        more = f" and {len(beyond) - 3} more" if len(beyond) > 3 else ""
        yield (
            f"the tokenizer has token ids beyond the embedding's {shape.vocab} rows: "
            f"{', '.join(map(str, beyond[:3]))}{more}; texts with these tokens are refused; "
            "resize_token_embeddings makes room"
        )


def _configurations(base: Checkpoint) -> Iterator[tuple[str, dict[str, Any]]]:
    yield "config.json", base.config
    if _GENERATION_CONFIG in base.files:
        yield _GENERATION_CONFIG, read_json_object(base.path / _GENERATION_CONFIG)


def _tokenizer_ids(base: Checkpoint) -> set[int]:
    """The ids in the tokenizer's files. Damaged files are skipped here: loading reports them."""
    ids: set[int] = set()
    for file, read in _READERS.items():
        if file in base.files:
            try:
                ids.update(i for i in read(read_json_object(base.path / file)) if type(i) is int)
            except (OtterError, AttributeError, TypeError, ValueError):
                continue
    return ids


def _ids_in_tokenizer_json(content: dict[str, Any]) -> Iterator[Any]:
    yield from (token["id"] for token in content.get("added_tokens") or [] if "id" in token)
    vocabulary = (content.get("model") or {}).get("vocab") or {}
    if isinstance(vocabulary, dict):
        yield from vocabulary.values()
    elif vocabulary:  # a list in the order of the ids
        yield len(vocabulary) - 1


def _ids_in_tokenizer_config(content: dict[str, Any]) -> Iterator[Any]:
    yield from (int(key) for key in content.get("added_tokens_decoder") or {})


_READERS = {
    "tokenizer.json": _ids_in_tokenizer_json,
    "tokenizer_config.json": _ids_in_tokenizer_config,
    "added_tokens.json": lambda content: content.values(),
}


def check_token_ids(texts: Iterable[Sequence[int]], shape: BaseShape, what: str = "text") -> None:
    """Raises OtterError for the first of `texts` that contains an id beyond the vocabulary."""
    for number, ids in enumerate(texts, 1):
        bad = next((i for i in ids if not 0 <= i < shape.vocab), None)
        if bad is not None:
            raise OtterError(
                f"{what} {number} holds the token id {bad}, and the base's vocabulary has "
                f"{shape.vocab} tokens",
                hint="the tokenizer has tokens that the embedding has no rows for: use the base's "
                "own tokenizer, or resize_token_embeddings before grafting",
            )


def check_learned_positions(tokens: int, shape: BaseShape, what: str) -> None:
    """Raises OtterError where a text has more tokens than the base has learned positions."""
    if shape.position_rows and tokens > shape.max_positions:
        raise OtterError(
            f"{what} has {tokens} tokens, and the base has {shape.max_positions} learned positions",
            hint="shorten the text, or lower max_length",
        )
