"""Labelled text: one text, one number or several."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from otter_cli.core.errors import OtterError
from otter_cli.core.suggest import closest
from otter_cli.data.chat_template import ChatText
from otter_cli.data.records import Place, Record, read_rows

Mapped = Mapping[str, float | Sequence[float]]


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
    path: str | Place,
    *,
    text: str,
    labels: Sequence[str],
    mapping: Mapped | None = None,
    low: float = 0.0,
    high: float = 1.0,
    since: str | None = None,
    limit: int | None = None,
) -> list[LabelledText]:
    """Texts with their labels, from a table.

    Each column of `labels` is a number from `low` to `high`; or, with `mapping`, one of its keys,
    that stands for a number or for several: {"0": 1, "1": 1, "2": 0} reads three classes as two,
    {"hate": [1, 0], "rude": [0, 1]} one column as two labels. `since` is a column of
    characters, from 0, or of nothing; in a dialogue they are those of the last message.
    OtterError, with file and line, for anything else.
    """
    if mapping:
        _check_mapping(mapping, low, high)

    def parse(record: Record) -> LabelledText:
        found: list[float] = []
        for column in labels:
            found += _labels(record, column, mapping, low, high)
        return LabelledText(record.text(text), tuple(found), _since(record, text, since))

    return read_rows(path, parse, limit=limit)


def _since(record: Record, column: str, since: str | None) -> int | None:
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
    record: Record, column: str, mapping: Mapped | None, low: float, high: float
) -> list[float]:
    if mapping:
        return _numbers(_mapped(record, column, mapping))
    return [record.number(column, low, high)]


def _mapped(record: Record, column: str, mapping: Mapped) -> float | Sequence[float]:
    key = str(record.value(column)).strip()
    if key not in mapping:
        near = closest(key, mapping)
        raise record.error(
            f"{column!r} is {key!r}, which the mapping lacks",
            (f"did you mean {near!r}? " if near else "") + f"it has {', '.join(mapping)}",
        )
    return mapping[key]


def _check_mapping(mapping: Mapped, low: float, high: float) -> None:
    sizes = {len(_numbers(value)) for value in mapping.values()}
    if len(sizes) > 1:
        raise OtterError(
            f"label mapping: its values have {' and '.join(map(str, sorted(sizes)))} numbers",
            hint="give every class the same number of labels",
        )
    for key, value in mapping.items():
        for number in _numbers(value):
            if not low <= number <= high:
                raise OtterError(
                    f"label mapping: {key!r} stands for {number:g}, outside {low:g} to {high:g}",
                    hint="map each class to numbers in that range",
                )


def _numbers(value: float | Sequence[float]) -> list[float]:
    return [float(v) for v in value] if isinstance(value, Sequence) else [float(value)]
