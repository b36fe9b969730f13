"""The input and output of `otter chat`: a terminal with history, or a pipe."""

from __future__ import annotations

import sys
from typing import Any

from otter_cli.cli.stdio import console, stdin_lines
from otter_cli.core.console import say
from otter_cli.core.errors import OtterError
from otter_cli.core.formatting import terminal_text
from otter_cli.reports.page import colour_of

PROMPT = "> "


class ChatTerminal:
    """Reads lines from the keyboard by prompt_toolkit (history, editing), or else from stdin."""

    def __init__(self) -> None:
        self.interactive = sys.stdin.isatty() and sys.stdout.isatty()
        self.console = console()
        self._stdin_lines = stdin_lines()
        self._column = 0
        if self.interactive:
            from prompt_toolkit import PromptSession
            from prompt_toolkit.history import InMemoryHistory

            # The history is kept in memory: conversations are not written to disk.
            self._prompt: Any = PromptSession(history=InMemoryHistory())

    def read(self) -> str | None:
        """The next line, or None at the end of the input."""
        if not self.interactive:
            return next(self._stdin_lines, None)
        try:
            line = self._prompt.prompt(PROMPT)
        except KeyboardInterrupt:
            # Ctrl-C while typing drops the line, as in a shell.
            return ""
        except EOFError:
            return None
        return str(line)

    def print_message(self, text: str) -> None:
        """Prints text that is not part of the conversation, on stderr."""
        say(text)

    def print_error(self, error: OtterError) -> None:
        say(f"error: {error}" + (f"\nhint: {error.hint}" if error.hint else ""))

    def show_token(self, text: str, value: float | None, low: float, high: float) -> None:
        from rich.text import Text

        style = "" if value is None else colour_of(value, low, high)
        shown = self._wrapped(terminal_text(text))
        self.console.print(Text(shown, style), end="", soft_wrap=True)
        sys.stdout.flush()

    def _wrapped(self, text: str) -> str:
        """`text`, on a terminal with a line break before a word that has no room left."""
        if not self.interactive:
            return text
        if text.startswith(" ") and self._column + len(text) > self.console.width:
            text = "\n" + text[1:]
        *earlier_lines, last = text.split("\n")
        self._column = len(last) if earlier_lines else self._column + len(last)
        return text

    def end_answer(self, finish: str, *, kept: bool) -> None:
        self._column = 0
        self.console.print()
        if finish == "interrupted":
            say(
                "stopped; the text so far stays in the conversation"
                if kept
                else "stopped before the first token; the message is dropped"
            )
        elif finish == "length":
            say("cut at --max-new-tokens, or at the end of the base's window")
