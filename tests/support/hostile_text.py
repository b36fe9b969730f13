"""Strings that a terminal, a page or rich would act on, and what must be left of each."""

import re

# Every one is shown with its letters; only control characters become escapes.
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

# Without tab and newline: what no terminal and no page may get from a string.
CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def shown_as(text: str) -> str:
    """What is shown for a string, written apart from the code under test."""
    parts = []
    for character in text:
        code = ord(character)
        escape = f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"
        parts.append(escape if CONTROL.match(character) else character)
    return "".join(parts).replace("\\x0d", "\\r")
