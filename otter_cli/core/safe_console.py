"""A rich console for which strings are text, never markup or terminal commands."""

from collections.abc import Iterable
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Span, Text

from otter_cli.core.formatting import escape_positions, terminal_text


class SafeConsole(Console):
    """A console that shows square brackets and `:smile:` as they are, and control characters as
    escapes such as `\\x1b`. rich's own colours and cursor movements are not escaped."""

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, emoji=False, highlight=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        """The text is escaped before its width is measured, so that tables keep their shape."""
        return super().render_str(terminal_text(text), **{**options, "markup": False})

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        """The text of every renderable passes through this method."""
        if isinstance(renderable, Text):
            renderable = _escape_text(renderable)
        for segment in super().render(renderable, options):
            if segment.control is None:
                segment = segment._replace(text=terminal_text(segment.text))
            yield segment


def _escape_text(text: Text) -> Text:
    plain = terminal_text(text.plain)
    if plain == text.plain:
        return text
    positions = escape_positions(text.plain)
    last = len(positions) - 1
    escaped = text.blank_copy(plain)
    escaped.spans = [
        Span(positions[min(span.start, last)], positions[min(span.end, last)], span.style)
        for span in text.spans
    ]
    return escaped
