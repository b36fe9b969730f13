"""Texts of a table, with labels and without.

Labels are numbers, mapped class names or classes. Plain texts are paragraphs of a txt file or a
column."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from otter_cli.core.errors import OtterError, did_you_mean
from otter_cli.data.chat_template import ChatText
from otter_cli.data.tables import TEXT_COLUMN, Record, TableLike, format_of, read_rows

LabelMapping = Mapping[str, float | Sequence[float]]


@dataclass(frozen=True)
class LabelledText:
    """`since`: the first character that the labels hold for, where that is known."""

    text: str
    labels: tuple[float, ...]
    since: int | None = None

    @property
    def identity(self) -> tuple[str, ...]:
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
    """Texts with their labels, from a table. Raises OtterError, with file and line.

    Each column of `labels` holds a number from `low` to `high`. With `mapping` it holds one of its
    keys, which stand for one or more numbers: {"0": 1, "1": 1, "2": 0} reads three classes as two,
    {"hate": [1, 0], "rude": [0, 1]} one column as two labels. With several `classes` and no mapping
    one column names the classes of a text: see `class_labels`. The column `prompt` is put before
    the text. The column `since` holds the first character (from 0) that the labels hold for, or
    nothing; in a dialogue it counts in the last message.
    """
    if mapping:
        _check_mapping(mapping, low, high)
    by_class = not mapping and len(labels) == 1 and len(classes) > 1

    def parse(record: Record) -> LabelledText:
        numbers: list[float] = []
        for column in labels:
            if by_class:
                numbers += class_labels(record, column, classes)
            elif mapping:
                numbers += _as_floats(_mapped_value(record, column, mapping))
            else:
                numbers.append(record.number(column, low, high))
        content = record.text(text)
        # A dialogue holds its prompt already.
        start = record.text(prompt) if prompt and not isinstance(content, ChatText) else ""
        character = _start_character(record, text, since)
        if character is not None:
            character += len(start)
        return LabelledText(start + content if start else content, tuple(numbers), character)

    return read_rows(path, parse)


def class_labels(record: Record, column: str, classes: Sequence[str]) -> list[float]:
    """One number for each class: 1 for each class that the column gives, else 0. It gives a name, a
    number from 0, a list of these, or for two classes a truth value: false is the first."""
    value = record.value(column)
    values = value if isinstance(value, list) else [value]
    present = {_class_index(record, column, each, classes) for each in values}
    return [float(index in present) for index in range(len(classes))]


def _class_index(record: Record, column: str, value: object, classes: Sequence[str]) -> int:
    text = str(value).strip()
    if (name := text.lower() if isinstance(value, bool) else text) in classes:
        return list(classes).index(name)
    if isinstance(value, bool) or text.lower() in ("true", "false"):
        if len(classes) == 2:
            return int(text.lower() == "true")
    elif text.removesuffix(".0").isdecimal() and int(text.removesuffix(".0")) < len(classes):
        return int(text.removesuffix(".0"))
    raise record.error(
        f"{column!r} is {text!r}, which is none of the classes {', '.join(classes)}",
        did_you_mean(text, classes)
        + f"give a name, a number from 0 to {len(classes) - 1}, or a mapping",
    )


def _start_character(record: Record, column: str, since: str | None) -> int | None:
    """The index in the text; in a dialogue the column counts in its last message."""
    if since is None or record.value(since) in (None, ""):
        return None
    text = record.text(column)
    if not isinstance(text, ChatText):
        return int(record.number(since, 0, len(text) - 1))
    if text.answer is None:
        raise record.error(
            f"the chat template changes the last message of {column!r}, so {since!r} cannot be "
            "found in it",
            "leave `since` out, or give the text as the template writes it, without chat",
        )
    start, end = text.answer
    return start + int(record.number(since, 0, end - start - 1))


def _mapped_value(record: Record, column: str, mapping: LabelMapping) -> float | Sequence[float]:
    key = str(record.value(column)).strip()
    if key not in mapping:
        raise record.error(
            f"{column!r} is {key!r}, which the mapping lacks",
            did_you_mean(key, mapping) + f"it has {', '.join(mapping)}",
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
    """The paragraphs of a txt file, divided by blank lines; or a column of a table, with the column
    `prompt` before it."""
    path = Path(path) if isinstance(path, str) else path
    # A table with a limit wraps its file.
    file = getattr(path, "table", path)
    if isinstance(file, Path) and format_of(file) == "txt":
        return read_rows(path, lambda record: record.text(TEXT_COLUMN), at_least=1)

    def parse(record: Record) -> str:
        text = record.text(column)
        # A dialogue holds its prompt already.
        return text if prompt is None or isinstance(text, ChatText) else record.text(prompt) + text

    return read_rows(path, parse)
