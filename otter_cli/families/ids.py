"""Token ids against the rows of the embedding: an id at or beyond the vocabulary has no row."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from otter_cli.checkpoint.folder import Checkpoint
from otter_cli.checkpoint.strict_json import read_object
from otter_cli.core.errors import OtterError
from otter_cli.families.shape import BaseShape

_LARGEST = 1 << 31
_GENERATION = "generation_config.json"
_ENDS = ("bos_token_id", "eos_token_id")


def id_fault(base: Checkpoint, shape: BaseShape) -> str:
    """Which id keeps the base from running: one that is no number, or a padding id that is no row
    of the embedding, which transformers cannot build then. Empty: none."""
    for file, values in _configurations(base):
        for key in ("pad_token_id", *_ENDS):
            given = values.get(key)
            listed = given if isinstance(given, list) and key == "eos_token_id" else [given]
            if given is not None and (not listed or not all(map(_is_id, listed))):
                return f"{file}: {key} is {ascii(given)[:40]}, not a token's id"
    config, defaults = base.config, shape.family.defaults
    pad = config["pad_token_id"] if "pad_token_id" in config else defaults.get("pad_token_id")
    if type(pad) is int and not -shape.vocab <= pad < shape.vocab:
        return f"config.json: pad_token_id is {pad}, and the vocabulary ends at {shape.vocab - 1}"
    return ""


def _is_id(value: Any) -> bool:
    return type(value) is int and 0 <= value < _LARGEST


def id_warnings(base: Checkpoint, shape: BaseShape) -> Iterator[str]:
    """Ids that the configurations or the tokenizer may use and the embedding has no row for. The
    base runs without them; a text that holds one is refused where it is used (`check_ids`)."""
    for file, values in _configurations(base):
        for key in _ENDS:
            given = values.get(key)
            for value in given if isinstance(given, list) else [given]:
                if type(value) is int and not 0 <= value < shape.vocab:
                    yield f"{file}: {key} {value} is no token: the vocabulary has {shape.vocab}"
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
    if _GENERATION in base.files:
        yield _GENERATION, read_object(base.path / _GENERATION)


def _tokenizer_ids(base: Checkpoint) -> set[int]:
    """What the tokenizer's files say; damage of these files is for the reader of tokenizers."""
    ids: set[int] = set()
    for file, read in _READERS.items():
        if file in base.files:
            try:
                ids.update(i for i in read(read_object(base.path / file)) if type(i) is int)
            except (OtterError, AttributeError, TypeError, ValueError):
                continue
    return ids


def _fast(content: dict[str, Any]) -> Iterator[Any]:
    yield from (token["id"] for token in content.get("added_tokens") or [] if "id" in token)
    vocabulary = (content.get("model") or {}).get("vocab") or {}
    if isinstance(vocabulary, dict):
        yield from vocabulary.values()
    elif vocabulary:  # a list in the order of the ids
        yield len(vocabulary) - 1


def _slow(content: dict[str, Any]) -> Iterator[Any]:
    yield from (int(key) for key in content.get("added_tokens_decoder") or {})


_READERS = {
    "tokenizer.json": _fast,
    "tokenizer_config.json": _slow,
    "added_tokens.json": lambda content: content.values(),
}


def check_ids(texts: Iterable[Sequence[int]], shape: BaseShape, what: str = "text") -> None:
    """Raises OtterError for the first of `texts` that holds a token beyond the vocabulary."""
    for number, ids in enumerate(texts, 1):
        bad = next((i for i in ids if not 0 <= i < shape.vocab), None)
        if bad is not None:
            raise OtterError(
                f"{what} {number} holds the token id {bad}, and the base's vocabulary has "
                f"{shape.vocab} tokens",
                hint="the tokenizer has tokens that the embedding has no rows for: use the base's "
                "own tokenizer, or resize_token_embeddings before grafting",
            )


def check_length(tokens: int, shape: BaseShape, what: str) -> None:
    """Raises OtterError where the text needs a position that a learned table has no row for."""
    if shape.positions and tokens > shape.max_positions:
        raise OtterError(
            f"{what} has {tokens} tokens, and the base has {shape.max_positions} learned positions",
            hint="shorten the text, or lower max_length",
        )
