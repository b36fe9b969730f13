"""Control characters in strings from outside do not reach a terminal, and no letter is lost."""

import io
import json

import pytest
from rich.console import Group
from rich.table import Table
from rich.text import Text

from otter_cli.core.formatting import escape_positions, json_text, terminal_text
from otter_cli.core.safe_console import SafeConsole
from tests.support.hostile_text import CONTROL, HOSTILE, shown_as

hostile = pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)


@hostile
def test_control_characters_become_escapes(text: str) -> None:
    assert terminal_text(text) == shown_as(text)
    assert terminal_text(terminal_text(text)) == terminal_text(text)


@pytest.mark.parametrize(
    "text", ["tab\tline\n", "Zoë", "مرحبا\u200f", "👩\u200d👩", "▁▂", "naïve — “x”", "\u200e(a)"]
)
def test_text_of_any_language_stays(text: str) -> None:
    assert terminal_text(text) == text


def test_line_ends_of_windows_are_line_ends() -> None:
    assert terminal_text("a\r\nb\rc") == "a\nb\\rc"


def test_half_a_character_can_be_written() -> None:
    assert terminal_text("a\udce9").encode() == b"a\\udce9"


@hostile
def test_json_reads_back_as_it_was(text: str) -> None:
    encoded = json_text(json.dumps({text: [text, "\udce9"]}, ensure_ascii=False))
    assert not CONTROL.search(encoded)
    assert json.loads(encoded) == {text: [text, "\udce9"]}


def test_positions_of_escaped_characters() -> None:
    assert escape_positions("a\x1bb\r\nc") == [0, 1, 5, 6, 6, 7, 8]


def _drawn(part: object, **options: object) -> str:
    out = io.StringIO()
    SafeConsole(file=out, width=60, **options).print(part)
    return out.getvalue()


def _table(text: str) -> Table:
    table = Table(text, title=text, caption=text)
    table.add_row(text)
    table.add_row(Text(text))
    return table


@hostile
@pytest.mark.parametrize("part", [str, Text, _table, lambda t: Group(t, Text(t))])
def test_no_renderable_passes_them_on(text: str, part) -> None:  # type: ignore[no-untyped-def]
    drawn = _drawn(part(text))
    assert not CONTROL.search(drawn)
    # rich drops some control characters itself.
    letters = [piece for piece in CONTROL.split(text) if piece]
    assert all(piece in drawn for piece in letters)


@hostile
def test_a_table_keeps_its_shape(text: str) -> None:
    table = Table("name", "value")
    table.add_row(text, "1")
    widths = {len(line) for line in _drawn(table).splitlines()[1:]}
    assert len(widths) == 1


def test_colours_of_our_own_stay_on_their_letters() -> None:
    text = Text.assemble(("red", "red"), "\x1b[2J", ("blue", "blue"))
    drawn = _drawn(text, force_terminal=True, color_system="standard")
    assert "\x1b[31mred\x1b[0m\\x1b[2J\x1b[34mblue\x1b[0m" in drawn
