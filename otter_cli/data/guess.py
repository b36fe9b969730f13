"""Guesses of columns and label values, for files whose columns have no usual name.

Each guess comes with its reason, which is shown. What is not clear is left to the user: the error
shows the file's columns, with examples, and the options to type."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from otter_cli.core.errors import OtterError
from otter_cli.data.columns import SampledRows, column_names

_TEXT_NAMES = (
    "text", "texts", "comment", "comment_text", "tweet", "review", "review_body", "review_text",
    "sentence", "content", "body", "message", "sms", "post", "document", "utterance", "passage",
)  # fmt: skip
_LABEL_NAMES = (
    "label", "labels", "class", "target", "category", "sentiment", "toxic", "toxicity",
    "offensive", "hate", "hateful", "spam", "rating", "stars", "star_rating", "score", "polarity",
)  # fmt: skip
# Numbers in columns of other names may be codes of classes, which have no order.
_SCALE_NAMES = ("rating", "stars", "star_rating", "score")
_PAIR_NAMES = (
    ("chosen", "rejected"), ("better", "worse"), ("preferred", "dispreferred"),
    ("winner", "loser"), ("good", "bad"), ("chosen_response", "rejected_response"),
)  # fmt: skip
# The word that stands for 0, and the word that stands for 1.
_YES_NO = (
    ("no", "yes"), ("n", "y"), ("false", "true"), ("ham", "spam"), ("clean", "toxic"),
    ("non-toxic", "toxic"), ("nontoxic", "toxic"), ("not toxic", "toxic"), ("neutral", "toxic"),
    ("normal", "abusive"), ("safe", "unsafe"), ("not", "off"), ("real", "fake"),
)  # fmt: skip
# Which of these a signal should score high depends on the signal: a reward takes the good word.
_GOOD_LAST = (("negative", "positive"), ("neg", "pos"), ("bad", "good"), ("dislike", "like"))
_MAX_CLASSES = 20
_LONGER = 2.0  # how much longer texts are than any other column
_NO_LABELS = re.compile(r"(?:^|_)(?:id|idx|index|count|date|time|year|unnamed: \d+)$|^$")


@dataclass(frozen=True)
class Guess:
    """A column, and why it is taken."""

    column: str
    why: str


def guess_text(rows: SampledRows) -> Guess | None:
    """The column of texts: by a usual name in any case, or the only one with sentences."""
    if _starts_with_data(rows):
        return None
    columns = [name for name in column_names(rows) if _words(name, rows) > 0]
    named = [name for name in columns if _plain(name) in _TEXT_NAMES]
    if len(named) == 1:
        return Guess(named[0], "by its name")
    longest = sorted(named or columns, key=lambda name: -_words(name, rows))
    if not longest or _words(longest[0], rows) < 2:
        return None
    others = [_words(name, rows) for name in longest[1:]]
    if others and _words(longest[0], rows) < _LONGER * max(others):
        return None
    return Guess(longest[0], "it has the longest texts")


def guess_label(rows: SampledRows, text: str | None, signals: Iterable[str] = ()) -> Guess | None:
    """The column of labels: by a signal's name, by a usual name, or the only one with few values.
    None where two columns could be meant."""
    if _starts_with_data(rows):
        return None
    columns = [name for name in column_names(rows) if name != text and name.strip()]
    stems = [_plain(signal)[:5] for signal in signals]
    like = "it is named like the signal"
    rules = (
        (like, [c for c in columns if _plain(c).removeprefix("is_") in stems]),
        (like, [c for c in columns if any(stem in _plain(c) for stem in stems)]),
        ("by its name", [c for c in columns if _is_label_name(_plain(c))]),
        ("it has few different values", [c for c in columns if _is_like_labels(c, rows)]),
    )
    for why, found in rules:
        if found:
            return Guess(found[0], why) if len(found) == 1 else None
    return None


def guess_pair(rows: SampledRows) -> tuple[str, str] | None:
    """The columns of the better and the worse texts, by usual names in any case."""
    names = {_plain(name): name for name in column_names(rows)}
    for better, worse in _PAIR_NAMES:
        if better in names and worse in names:
            return names[better], names[worse]
    return None


def guess_mapping(
    values: Sequence[str], column: str, *, good_is_high: bool, signals: Iterable[str] = ()
) -> dict[str, float] | None:
    """Numbers from 0 to 1 for the different values of a label column; an empty mapping where they
    are such numbers already, and None where only the user can say. `good_is_high`: the signal is a
    reward, which may have a scale of several steps."""
    numbers = [_number(value) for value in values]
    if all(number is not None and 0 <= number <= 1 for number in numbers):
        return {}
    if all(number is not None for number in numbers):
        known = [number for number in numbers if number is not None]
        low, high = min(known), max(known)
        is_scale = _plain(column) in _SCALE_NAMES and good_is_high
        if not is_scale or not 1 < len(values) <= _MAX_CLASSES:
            return None
        return {v: (n - low) / (high - low) for v, n in zip(values, known, strict=True)}
    if len(values) != 2:
        return None
    by_word = {_plain(value): value for value in values}
    for signal in signals:
        if _plain(signal) in by_word:
            return {value: float(_plain(value) == _plain(signal)) for value in values}
    for zero, one in (*_YES_NO, *(_GOOD_LAST if good_is_high else ())):
        if {_plain(zero), _plain(one)} == set(by_word):
            return {by_word[_plain(zero)]: 0.0, by_word[_plain(one)]: 1.0}
    return None


def unclear_columns(path: Path, rows: SampledRows, what: str, options: str) -> OtterError:
    """The error where `what` cannot be guessed: the file's columns with an example each, and the
    options that name them."""
    shown = "; ".join(f"{name!r}, such as {_example(name, rows)}" for name in column_names(rows))
    hint = f"name it: {options}"
    if _starts_with_data(rows):
        hint += "; the first line looks like data: put one with the names of the columns before it"
    return OtterError(f"{path}: {what} is not clear; its columns are {shown}", hint=hint)


def unclear_labels(path: Path, column: str, counts: Mapping[str, int], signal: str) -> OtterError:
    """The error where the values of a label column need a mapping."""
    values = list(counts)
    if len(values) > _MAX_CLASSES:
        return OtterError(
            f"{path}: {column!r} has {len(values)} different values, such as {values[0]!r}; a "
            "label is a number from 0 to 1",
            hint="divide the numbers by their largest, or name another column: --label COLUMN",
        )
    shown = ", ".join(f"{value!r} ({count} rows)" for value, count in counts.items())
    options = " ".join(f"--map {_quoted(f'{value}=NUMBER')}" for value in values)
    return OtterError(
        f"{path}: {column!r} holds {shown}, and signal {signal!r} learns a number from 0 to 1",
        hint=f"say what each stands for: {options}",
    )


def map_options(mapping: Mapping[str, float]) -> str:
    """The options that say the same as a mapping."""
    return " ".join(f"--map {_quoted(f'{value}={number:g}')}" for value, number in mapping.items())


def label_counts(values: Iterable[Any]) -> dict[str, int]:
    """How often each value of a label column occurs, as text, in order."""
    counts = Counter(str(value).strip() for value in values)
    return {value: counts[value] for value in sorted(counts, key=_sort_key)}


def _sort_key(value: str) -> tuple[float, str]:
    number = _number(value)
    return (math.inf if number is None else number, value)


def _plain(name: str) -> str:
    return re.sub(r"[\s_-]+", "_", name.strip().lower())


def _starts_with_data(rows: SampledRows) -> bool:
    """Whether the file's first line is a row and no header: a name is a number."""
    return any(_number(name) is not None for name in column_names(rows))


def _is_label_name(name: str) -> bool:
    return name in _LABEL_NAMES or name.startswith("is_")


def _words(column: str, rows: SampledRows) -> float:
    """The mean number of words of a column's texts; 0 for a column of numbers."""
    values = [row.get(column) for row in rows]
    texts = [v for v in values if isinstance(v, str) and v.strip() and _number(v) is None]
    return sum(len(text.split()) for text in texts) / len(texts) if texts else 0.0


def _is_like_labels(column: str, rows: SampledRows) -> bool:
    values = [str(row.get(column)).strip() for row in rows]
    different = len(set(values))
    few = 1 < different <= min(_MAX_CLASSES, max(2, len(values) // 2))
    return few and not _NO_LABELS.search(_plain(column))


def _number(value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def _example(column: str, rows: SampledRows) -> str:
    value = next((row[column] for row in rows if row.get(column) not in (None, "")), "")
    text = " ".join(str(value).split())
    return repr(text if len(text) <= 30 else f"{text[:29]}…")


def _quoted(text: str) -> str:
    import shlex

    return shlex.quote(text)
