"""Texts of a table, with labels and without.

Labels are numbers, mapped class names or classes. Plain texts are paragraphs of a txt file or a
column."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from otter_cli.core.errors import OtterError, closest
from otter_cli.data.chat_template import ChatText
from otter_cli.data.tables import TEXT_COLUMN, Record, TableLike, format_of, read_rows

LabelMapping = Mapping[str, float | Sequence[float]]


@dataclass(frozen=True)
class LabelledText:
    """`since`: the character at which begins what the labels are for, where that is known."""

    text: str
    labels: tuple[float, ...]
    since: int | None = None

    @property
    def identity(self) -> tuple[str, ...]:
        """What must not occur in both training and test data."""
        return (self.text,)


def read_labelled(
    path: str | TableLike,
    *,
    text: str,
    labels: Sequence[str],
    mapping: LabelMapping | None = None,
    classes: Sequence[str] = (),
    prompt: str | None = None,
    low: float = 0.0,
    high: float = 1.0,
    since: str | None = None,
) -> list[LabelledText]:
    """Texts with their labels, from a table.

    Each column of `labels` is a number from `low` to `high`; or, with `mapping`, one of its keys,
    that stands for a number or for several: {"0": 1, "1": 1, "2": 0} reads three classes as two,
    {"hate": [1, 0], "rude": [0, 1]} one column as two labels. One column without a mapping says
    which of several `classes` a text is of: see `class_labels`. `prompt` is a column that is put
    before the text. `since` is a column of characters of the text, from 0, or of nothing; in a
    dialogue they are those of the last message.
    OtterError, with file and line, for anything else.
    """
    if mapping:
        _check_mapping(mapping, low, high)
    by_class = not mapping and len(labels) == 1 and len(classes) > 1

    def parse(record: Record) -> LabelledText:
        found: list[float] = []
        for column in labels:
            if by_class:
                found += class_labels(record, column, classes)
            else:
                found += _labels(record, column, mapping, low, high)
        written = record.text(text)
        # A dialogue has its prompt already.
        start = record.text(prompt) if prompt and not isinstance(written, ChatText) else ""
        begins = _start_character(record, text, since)
        begins = None if begins is None else len(start) + begins
        return LabelledText(start + written if start else written, tuple(found), begins)

    return read_rows(path, parse)


def class_labels(record: Record, column: str, classes: Sequence[str]) -> list[float]:
    """One number for each class: 1 for those that the column names, as a name, a number from 0, a
    list of these, or (of two classes) a truth value: false is the first."""
    value = record.value(column)
    named = value if isinstance(value, list) else [value]
    chosen = {_class_index(record, column, one, classes) for one in named}
    return [float(index in chosen) for index in range(len(classes))]


def _class_index(record: Record, column: str, value: object, classes: Sequence[str]) -> int:
    text = str(value).strip()
    if (name := text.lower() if isinstance(value, bool) else text) in classes:
        return list(classes).index(name)
    if isinstance(value, bool) or text.lower() in ("true", "false"):
        if len(classes) == 2:
            return int(text.lower() == "true")
    elif text.removesuffix(".0").isdecimal() and int(text.removesuffix(".0")) < len(classes):
        return int(text.removesuffix(".0"))
    near = closest(text, classes)
    raise record.error(
        f"{column!r} is {text!r}, which is none of the classes {', '.join(classes)}",
        (f"did you mean {near!r}? " if near else "")
        + f"give a name, a number from 0 to {len(classes) - 1}, or a mapping",
    )


def _start_character(record: Record, column: str, since: str | None) -> int | None:
    """Counted in the text; of a dialogue in what its last message says."""
    if since is None or record.value(since) in (None, ""):
        return None
    text = record.text(column)
    if not isinstance(text, ChatText):
        return int(record.number(since, 0, len(text) - 1))
    if text.answer is None:
        raise record.error(
            f"the last message of {column!r} stands otherwise in what the chat template writes, "
            f"so that {since!r} has no place there",
            "leave `since` out, or give the text as the template writes it, without chat",
        )
    start, end = text.answer
    return start + int(record.number(since, 0, end - start - 1))


def _labels(
    record: Record, column: str, mapping: LabelMapping | None, low: float, high: float
) -> list[float]:
    if mapping:
        return _as_floats(_mapped_value(record, column, mapping))
    return [record.number(column, low, high)]


def _mapped_value(record: Record, column: str, mapping: LabelMapping) -> float | Sequence[float]:
    key = str(record.value(column)).strip()
    if key not in mapping:
        near = closest(key, mapping)
        raise record.error(
            f"{column!r} is {key!r}, which the mapping lacks",
            (f"did you mean {near!r}? " if near else "") + f"it has {', '.join(mapping)}",
        )
    return mapping[key]


def _check_mapping(mapping: LabelMapping, low: float, high: float) -> None:
    sizes = {len(_as_floats(value)) for value in mapping.values()}
    if len(sizes) > 1:
        raise OtterError(
            f"label mapping: its values have {' and '.join(map(str, sorted(sizes)))} numbers",
            hint="give every class the same number of labels",
        )
    for key, value in mapping.items():
        for number in _as_floats(value):
            if not low <= number <= high:
                raise OtterError(
                    f"label mapping: {key!r} stands for {number:g}, outside {low:g} to {high:g}",
                    hint="map each class to numbers in that range",
                )


def _as_floats(value: float | Sequence[float]) -> list[float]:
    return [float(v) for v in value] if isinstance(value, Sequence) else [float(value)]


def read_texts(
    path: str | TableLike, *, column: str = TEXT_COLUMN, prompt: str | None = None
) -> list[str]:
    """The paragraphs of a txt file (blank lines part them), or a column of a table; with `prompt`,
    that column is put before it."""
    path = Path(path) if isinstance(path, str) else path
    # A limit or a split may stand before the file.
    file = getattr(path, "place", path)
    if isinstance(file, Path) and format_of(file) == "txt":
        return read_rows(path, lambda record: record.text(TEXT_COLUMN), at_least=1)

    def parse(record: Record) -> str:
        text = record.text(column)
        # A dialogue has its prompt already.
        return text if prompt is None or isinstance(text, ChatText) else record.text(prompt) + text

    return read_rows(path, parse)
