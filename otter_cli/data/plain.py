"""Plain text, for future tokens and perplexity: a file of paragraphs, or a column of rows."""

from collections.abc import Iterator
from pathlib import Path

from otter_cli.data.lines import format_of, numbered_lines
from otter_cli.data.records import read_rows, require_rows


def read_texts(path: str | Path, *, column: str = "text", limit: int | None = None) -> list[str]:
    """The paragraphs of a txt file (blank lines part them), or a column of jsonl or csv rows."""
    if format_of(Path(path)) != "txt":
        return read_rows(path, lambda record: record.text(column), limit=limit)
    paragraphs = list(_paragraphs(Path(path)))[:limit]
    require_rows(path, len(paragraphs), at_least=1)
    return paragraphs


def _paragraphs(path: Path) -> Iterator[str]:
    lines: list[str] = []
    for _, line in numbered_lines(path):
        if line.strip():
            lines.append(line)
        elif lines:
            yield "".join(lines).rstrip("\r\n")
            lines = []
    if lines:
        yield "".join(lines).rstrip("\r\n")
