"""Strings from outside, made safe for the terminal and for JSON.

Model output, prompts, names and file paths may hold control characters. A terminal obeys them: they
move the cursor, set its title or turn the text around. Each sink has one function: `terminal_text`
and `json_text` here, `html_text` and `markdown_text` in `reports.escaping`.
"""

import re

# C0 but tab and newline, DEL, C1, line and paragraph separators, what overrides the direction of
# text, and halves of characters, which no encoding can write. Marks that real text needs (such as
# U+200F in Arabic, U+200D in emoji) are not among them.
_CONTROL = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)


def terminal_text(text: str) -> str:
    """`text` with each control character written as an escape, such as `\\x1b`."""
    return _CONTROL.sub(_escaped, text.replace("\r\n", "\n"))


def json_text(encoded: str) -> str:
    """JSON with every control character in its strings escaped: the same value when it is read.

    `json.dumps(ensure_ascii=False)` leaves DEL, C1 and the overrides of direction as they are.
    """
    return _CONTROL.sub(lambda match: f"\\u{ord(match[0]):04x}", encoded)


def escape_positions(text: str) -> list[int]:
    """Where each character of `text`, and its end, lies in `terminal_text(text)`."""
    positions = [0]
    for i, character in enumerate(text):
        gone = character == "\r" and text[i + 1 : i + 2] == "\n"
        positions.append(positions[-1] + (0 if gone else len(terminal_text(character))))
    return positions


def _escaped(match: re.Match[str]) -> str:
    return match[0].encode("unicode_escape").decode("ascii")
