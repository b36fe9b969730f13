"""Strings that a terminal, a page or rich would interpret, and what must be shown for each."""

import re

# Each is shown with its letters. Only control characters become escapes.
HOSTILE = {
    "closing markup": "[/INST]",
    "style markup": "[bold]x[/bold]",
    "emoji code": ":smile:",
    "window title": "a\x1b]0;title\x07b",
    "hyperlink": "\x1b]8;;http://x\x1b\\y",
    "clear screen": "a\x1b[2Jb",
    "eight-bit escape": "a\x9b2Jb",
    "overwritten line": "kept\rlost",
    "backspaces": "ab\x08\x08cd",
    "overridden direction": "abc\u202edef",
    "isolated direction": "abc\u2066def",
    "null": "a\x00b",
    "element": "<script>alert(1)</script>",
    "link": "[click](javascript:alert(1))",
}

# The characters that no terminal and no page may receive; tab and newline may pass.
CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def shown_as(text: str) -> str:
    """The text to be shown for a string, computed independently of the code under test."""
    parts = []
    for character in text:
        code = ord(character)
        escape = f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"
        parts.append(escape if CONTROL.match(character) else character)
    return "".join(parts).replace("\\x0d", "\\r")
