"""Strings from outside, made safe for a report's files: HTML and Markdown.

Names, labels, paths and texts come from data and models. In a page they are text: never an element,
a link or a script. Control characters, which no page may hold, become escapes as on the terminal.
"""

import re
from html import escape

from otter_cli.core.escaping import terminal_text

# What Markdown acts on inside a line: code, emphasis, links, images, table cells, strokes.
# An underscore within a word is plain text there, and the names of figures are full of them.
_MARKDOWN = re.compile(r"[\\`*\[\]|]|~~|(?<![^\W_])_|_(?![^\W_])")
_ENTITY = re.compile(r"&(?=#?\w+;)")
# At the start of a paragraph: headings, quotes, lists, rules.
_BLOCK = re.compile(r"^\s*(#|>|[-+=](?=[\s=-]|$)|\d+(?=[.)](?:\s|$)))")


def html_text(text: str) -> str:
    """For the text of an element, and for an attribute's value in double quotes."""
    return escape(terminal_text(text))


def markdown_text(text: str) -> str:
    """For a heading, a table's cell or a part of a line, always on one line."""
    line = " ".join(terminal_text(text).split("\n"))
    return _ENTITY.sub("&amp;", _MARKDOWN.sub(r"\\\g<0>", line)).replace("<", "&lt;")


def markdown_paragraph(text: str) -> str:
    """For the start of a line, where a mark may also make a heading, a list or a rule."""
    return _BLOCK.sub(_block_escaped, markdown_text(text))


def _block_escaped(match: re.Match[str]) -> str:
    return match[1] + "\\" if match[1].isdigit() else "\\" + match[1]
