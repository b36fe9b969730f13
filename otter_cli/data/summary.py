"""What `otter train` would read from a data file: kind, columns, lengths, duplicates, classes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from otter_cli.core.errors import OtterError
from otter_cli.data.columns import (
    LABEL_COLUMNS,
    PROMPT_COLUMNS,
    column_names,
    holds_messages,
    ignored_columns,
    is_messages,
    pair_prompt,
    sample_rows,
    usual_column,
    usual_text,
)
from otter_cli.data.guess import guess_label, guess_mapping, guess_pair, guess_text, unclear_columns
from otter_cli.data.tables import Record, read_records

FileKind = Literal["pairs", "labels", "texts", "prompts"]
_QUANTILES = (0.5, 0.9, 1.0)
_NO_LIMIT = 1 << 31


@dataclass(frozen=True)
class DataSummary:
    """`lengths`: tokens of a text (median, 90 %, longest), or characters without a tokenizer.
    `cut`: texts longer than `max_length`. `duplicates`: rows with the texts of an earlier row.
    `identical`: pairs whose texts are equal, or equal after a cut."""

    path: Path
    kind: FileKind
    rows: int
    columns: dict[str, str]
    ignored: list[str]
    chat: bool
    unit: Literal["tokens", "characters"]
    lengths: dict[str, int]
    max_length: int | None
    cut: int
    duplicates: int
    identical: int
    classes: dict[str, int]
    # Why a column was taken that has no usual name, by its use.
    understood: dict[str, str]
    # What the values of the label column stand for, as a reward reads them: {} for numbers from 0
    # to 1, None where only the user can say.
    mapping: dict[str, float] | None


def summarise(
    path: Path,
    tokenizer: Any = None,
    *,
    named: Mapping[str, str] | None = None,
    max_length: int | None = None,
) -> DataSummary:
    """Reads the whole file. `named`: columns that the user names, by their use (text, label,
    prompt, chosen, rejected). Raises OtterError, with file and line, for unusable rows."""
    rows = sample_rows(path)
    if not rows:
        raise OtterError(f"{path} has no rows", hint="it needs one row a text, or one a pair")
    understood: dict[str, str] = {}
    kind, columns = _detect_kind(path, rows, dict(named or {}), understood)
    texts = [columns[key] for key in ("chosen", "rejected", "text") if key in columns]
    # As in training, with a chat template a prompt with its answer is a dialogue.
    chat = any(holds_messages(column, rows) for column in (*texts, columns.get("prompt", "")))
    chat |= bool(getattr(tokenizer, "chat_template", None)) and "prompt" in columns
    counted = _RowCounter(kind, columns, chat, tokenizer, max_length)
    for record in read_records(path):
        counted.add(record)
    return DataSummary(
        path=path,
        kind=kind,
        rows=counted.rows,
        columns=columns,
        ignored=ignored_columns(rows, columns.values()),
        chat=chat,
        unit="characters" if tokenizer is None else "tokens",
        lengths=_quantiles(counted.lengths),
        max_length=max_length,
        cut=counted.cut,
        duplicates=counted.duplicates,
        identical=counted.identical,
        classes=dict(counted.classes.most_common(20)),
        understood=understood,
        mapping=guess_mapping(list(counted.classes), columns.get("label", ""), good_is_high=True),
    )


def _detect_kind(
    path: Path,
    rows: Sequence[Mapping[str, Any]],
    named: dict[str, str],
    understood: dict[str, str],
) -> tuple[FileKind, dict[str, str]]:
    """The kind of the file, and the column for each use. The reasons of guesses are written into
    `understood`."""
    names = column_names(rows)
    for use, column in named.items():
        if column not in names:
            raise OtterError(
                f"{path} has no column {column!r} for {use}",
                hint=f"its columns: {', '.join(names)}",
            )
    guessed_pair = None if {"chosen", "rejected"} & set(named) else guess_pair(rows)
    pair = guessed_pair or ("chosen", "rejected")
    better, worse = named.get("chosen", pair[0]), named.get("rejected", pair[1])
    if {"chosen", "rejected"} & set(named) and not {better, worse} <= set(names):
        raise OtterError(
            f"{path}: a pair has two texts, and there are no columns {better!r} and {worse!r}",
            hint=f"--chosen COLUMN --rejected COLUMN; its columns: {', '.join(names)}",
        )
    as_texts = "chosen" not in named and ("text" in named or "label" in named)
    if better in names and worse in names and not as_texts:
        columns = {"chosen": better, "rejected": worse}
        prompt = named.get("prompt") or pair_prompt(better, worse, rows)
        return "pairs", {**columns, **({"prompt": prompt} if prompt else {})}
    columns = {"text": named["text"]} if "text" in named else dict(usual_text("text", (), rows))
    if "prompt" in named:
        columns["prompt"] = named["prompt"]
    label = named.get("label") or usual_column("labels", LABEL_COLUMNS, rows, text=False)
    guessed_text = None if "text" in columns or _usual_prompt(rows) else guess_text(rows)
    if guessed_text is not None:
        columns["text"], understood["text"] = guessed_text.column, guessed_text.why
    if label is None and "text" in columns and (guess := guess_label(rows, columns["text"])):
        label, understood["label"] = guess.column, guess.why
    if "text" in columns:
        return ("labels", {**columns, "label": label}) if label else ("texts", columns)
    prompt = _usual_prompt(rows)
    if prompt is not None:
        return "prompts", {"text": prompt}
    options = "--text COLUMN --label COLUMN, or --chosen COLUMN --rejected COLUMN"
    raise unclear_columns(path, rows, "which column is a text, a pair or a prompt", options)


def _usual_prompt(rows: Sequence[Mapping[str, Any]]) -> str | None:
    return usual_column("prompt", PROMPT_COLUMNS, rows)


class _RowCounter:
    """Counts and lengths over the rows of a file."""

    def __init__(
        self,
        kind: FileKind,
        columns: Mapping[str, str],
        chat: bool,
        tokenizer: Any,
        max_length: int | None,
    ) -> None:
        self.columns, self.chat = columns, chat
        self.tokenizer, self.max_length = tokenizer, max_length
        # Training appends EOS to a text. A prompt that the base continues has none.
        self.eos = kind != "prompts" and getattr(tokenizer, "eos_token_id", None) is not None
        self.rows = self.cut = self.duplicates = self.identical = 0
        self.lengths: list[int] = []
        self.classes: Counter[str] = Counter()
        self._seen: set[tuple[str, ...]] = set()

    def add(self, record: Record) -> None:
        self.rows += 1
        texts = [
            self._text(record, self.columns[use])
            for use in ("chosen", "rejected", "text")
            if use in self.columns
        ]
        key = tuple(map(str, texts))
        self.duplicates += key in self._seen
        self._seen.add(key)
        encoded = [self._ids(text) for text in texts]
        for ids in encoded:
            self.lengths.append(len(ids))
            self.cut += self.max_length is not None and len(ids) > self.max_length
        if len(encoded) == 2:
            keep = self.max_length or max(map(len, encoded))
            self.identical += encoded[0][-keep:] == encoded[1][-keep:]
        if "label" in self.columns:
            self.classes[str(record.value(self.columns["label"]))] += 1

    def _text(self, record: Record, column: str) -> Any:
        """A text after its prompt, or messages."""
        value = record.value(column)
        prompt = self.columns.get("prompt")
        start = record.value(prompt) if prompt else []
        if not is_messages(start):
            start = [{"role": "user", "content": start}] if start else []
        if is_messages(value):
            return [*start, *value] if start and value[0]["role"] == "assistant" else value
        text = record.text(column)
        if prompt is None:
            return text
        if self.chat:
            return [*start, {"role": "assistant", "content": text}]
        return record.text(prompt) + text

    def _ids(self, text: Any) -> Sequence[Any]:
        if self.tokenizer is None:
            return text if isinstance(text, str) else "".join(str(m.get("content")) for m in text)
        from otter_cli.data.chat_template import render_chat
        from otter_cli.data.encoding import Encoder

        rendered = text if isinstance(text, str) else render_chat(self.tokenizer, text)
        encode = Encoder(self.tokenizer, _NO_LIMIT, eos=self.eos, allow_empty=True)
        return encode([rendered]).ids[0]


def _quantiles(lengths: Sequence[int]) -> dict[str, int]:
    ordered = sorted(lengths)
    names = ("median", "90 %", "longest")
    return {
        name: ordered[min(int(share * len(ordered)), len(ordered) - 1)]
        for name, share in zip(names, _QUANTILES, strict=True)
    }
