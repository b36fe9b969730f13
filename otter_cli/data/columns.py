"""Usual names of columns, for tables whose columns a recipe does not name.

    chosen, rejected     pairs
    prompt               prompt, question, instruction, query or input: put before both texts of a
                         pair, and before an answer; never before a column called text
    text                 text or messages; else an answer: completion, response, answer or output
    label                label, labels or class, where no column has the name of the signal
    spans                spans, toxic_spans or positions, where no column has the name of the signal

A name in the recipe goes first. Two usual names for one purpose raise an error with both."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence
from itertools import islice
from typing import Any

from otter_cli.core.errors import OtterError
from otter_cli.data.tables import TableLike, read_records

PROMPT_COLUMNS = ("prompt", "question", "instruction", "query", "input")
TEXT_COLUMNS = ("text", "messages")
ANSWER_COLUMNS = ("completion", "response", "answer", "output")
LABEL_COLUMNS = ("label", "labels", "class")
SPAN_COLUMNS = ("spans", "toxic_spans", "positions")

# The number of rows that show which columns a table has.
_SAMPLE = 100

SampledRows = Sequence[Mapping[str, Any]]


def sample_rows(table: TableLike) -> SampledRows:
    """The values of a table's first rows."""
    return [record.values for record in islice(read_records(table), _SAMPLE)]


def column_names(rows: SampledRows) -> list[str]:
    """All columns of the sampled rows, in order."""
    return list(dict.fromkeys(name for row in rows for name in row))


def usual_column(
    key: str, names: Iterable[str], rows: SampledRows, *, text: bool = True
) -> str | None:
    """The column of `names` that the rows have, or None. With `text` a column counts only if it
    holds texts or messages. Raises OtterError, with both names, for two of them."""
    columns = set(column_names(rows))
    present = [n for n in names if n in columns and (not text or _holds_texts(n, rows))]
    if len(present) > 1:
        raise OtterError(
            f"columns {' and '.join(map(repr, present))} could both be the {key}",
            hint=f"name the one that is meant, such as `{key}: {present[0]}`",
        )
    return present[0] if present else None


def is_messages(value: Any) -> bool:
    """Whether a value is a dialogue: a list of messages, each with a role."""
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(message, Mapping) and "role" in message for message in value)
    )


def holds_messages(column: str, rows: SampledRows) -> bool:
    return any(is_messages(row.get(column)) for row in rows)


def pair_prompt(chosen: str, rejected: str, rows: SampledRows) -> str | None:
    """The column with the prompt of both texts of a pair. None if the texts hold the prompt
    already: they begin with it, or are dialogues that begin with a user's turn."""
    column = usual_column(
        "prompt", (n for n in PROMPT_COLUMNS if n not in (chosen, rejected)), rows
    )
    if column is None or all(_begins_with(row, column, (chosen, rejected)) for row in rows):
        return None
    return column


def usual_text(key: str, named: Container[str], rows: SampledRows) -> dict[str, Any]:
    """The column of texts, and of the prompt before an answer, for the keys that are not
    `named`."""
    if key in named:
        return {}
    column = usual_column(key, TEXT_COLUMNS, rows)
    if column is not None:
        return {key: column}
    answer = usual_column(key, ANSWER_COLUMNS, rows)
    if answer is None:
        return {}
    if "prompt" in named:
        return {key: answer}
    prompt = usual_column("prompt", PROMPT_COLUMNS, rows)
    return {key: answer} if prompt is None else {key: answer, "prompt": prompt}


def ignored_columns(rows: SampledRows, used: Iterable[str]) -> list[str]:
    """Columns that nothing reads. `a.b` uses column `a`."""
    known = {part for name in used for part in (name, name.partition(".")[0])}
    return [name for name in column_names(rows) if name not in known]


def _holds_texts(column: str, rows: SampledRows) -> bool:
    values = [row[column] for row in rows if column in row]
    return any(isinstance(value, str) or is_messages(value) for value in values)


def _begins_with(row: Mapping[str, Any], prompt: str, texts: Iterable[str]) -> bool:
    start = row.get(prompt)
    return all(_continues(start, row.get(text)) for text in texts)


def _continues(start: Any, whole: Any) -> bool:
    if is_messages(whole):
        return bool(whole[0]["role"] != "assistant")
    return isinstance(start, str) and isinstance(whole, str) and whole.startswith(start)
