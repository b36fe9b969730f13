"""The rich console that shows everything: strings are text, never markup or terminal commands."""

from collections.abc import Iterable
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Span, Text

from otter_cli.core.formatting import escape_positions, terminal_text


class SafeConsole(Console):
    """A console that shows square brackets, `:smile:` and control characters as they were written.

    Control characters come out as escapes, such as `\\x1b`. Colours and the cursor movements of a
    progress bar are rich's own, and pass.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, emoji=False, highlight=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        """Escaped before its width is measured, so that tables keep their shape."""
        return super().render_str(terminal_text(text), **{**options, "markup": False})

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        """Whatever a renderable is made of, its text passes here last."""
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
    at = escape_positions(text.plain)
    escaped = text.blank_copy(plain)
    escaped.spans = [
        Span(at[min(span.start, len(at) - 1)], at[min(span.end, len(at) - 1)], span.style)
        for span in text.spans
    ]
    return escaped
