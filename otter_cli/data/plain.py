"""Plain text, for future tokens and perplexity: a file of paragraphs, or a column of rows."""

from collections.abc import Iterator
from pathlib import Path

from otter_cli.data.chat_template import ChatText
from otter_cli.data.lines import format_of, numbered_lines
from otter_cli.data.records import Place, Record, read_rows

TEXT = "text"


def read_texts(path: str | Place, *, column: str = TEXT, prompt: str | None = None) -> list[str]:
    """The paragraphs of a txt file (blank lines part them), or a column of a table; with `prompt`,
    that column is put before it."""
    path = Path(path) if isinstance(path, str) else path
    # A limit or a split may stand before the file.
    file = getattr(path, "place", path)
    if isinstance(file, Path) and format_of(file) == "txt":
        return read_rows(path, lambda record: record.text(TEXT), at_least=1)

    def parse(record: Record) -> str:
        text = record.text(column)
        # A dialogue has its prompt already.
        return text if prompt is None or isinstance(text, ChatText) else record.text(prompt) + text

    return read_rows(path, parse)


def paragraph_records(path: Path) -> Iterator[Record]:
    """The paragraphs of a text file, each at the line that it begins with."""
    lines: list[str] = []
    first = 1
    for number, line in numbered_lines(path):
        if line.strip():
            first = first if lines else number
            lines.append(line)
        elif lines:
            yield Record(path, first, {TEXT: "".join(lines).rstrip("\r\n")})
            lines = []
    if lines:
        yield Record(path, first, {TEXT: "".join(lines).rstrip("\r\n")})
