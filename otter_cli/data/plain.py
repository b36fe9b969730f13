"""Plain text, for future tokens and perplexity: a file of paragraphs, or a column of rows."""

from collections.abc import Iterator
from pathlib import Path

from otter_cli.data.lines import format_of, numbered_lines
from otter_cli.data.records import Place, read_rows, require_rows


def read_texts(path: str | Place, *, column: str = "text", limit: int | None = None) -> list[str]:
    """The paragraphs of a txt file (blank lines part them), or a column of a table."""
    path = Path(path) if isinstance(path, str) else path
    if not isinstance(path, Path) or format_of(path) != "txt":
        return read_rows(path, lambda record: record.text(column), limit=limit)
    paragraphs = list(_paragraphs(path))[:limit]
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
