"""Where a conversation of `otter chat` is typed and shown: a terminal with history, or a pipe."""

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
    """Lines come from the keyboard by prompt_toolkit (history, editing), else from stdin."""

    def __init__(self) -> None:
        self.typed = sys.stdin.isatty() and sys.stdout.isatty()
        self.console = console()
        self._lines = stdin_lines()
        self._column = 0
        if self.typed:
            from prompt_toolkit import PromptSession
            from prompt_toolkit.history import InMemoryHistory

            # In memory alone: what people say to a model is not left on the disk unasked.
            self._prompt: Any = PromptSession(history=InMemoryHistory())

    def read(self) -> str | None:
        """The next line, or None at the end of the input."""
        if not self.typed:
            return next(self._lines, None)
        try:
            line = self._prompt.prompt(PROMPT)
        except KeyboardInterrupt:
            # Ctrl-C while typing drops the line, as in a shell.
            return ""
        except EOFError:
            return None
        return str(line)

    def say(self, text: str) -> None:
        """Talk that is no part of the conversation, on stderr."""
        say(text)

    def say_error(self, error: OtterError) -> None:
        say(f"error: {error}" + (f"\nhint: {error.hint}" if error.hint else ""))

    def show_token(self, text: str, value: float | None, low: float, high: float) -> None:
        from rich.text import Text

        style = "" if value is None else colour_of(value, low, high)
        shown = self._wrapped(terminal_text(text))
        self.console.print(Text(shown, style), end="", soft_wrap=True)
        sys.stdout.flush()

    def _wrapped(self, text: str) -> str:
        """On a terminal a word that has no room left begins a new line, as a page would wrap it."""
        if not self.typed:
            return text
        if text.startswith(" ") and self._column + len(text) > self.console.width:
            text = "\n" + text[1:]
        *before, last = text.split("\n")
        self._column = len(last) if before else self._column + len(last)
        return text

    def end_answer(self, finish: str, *, kept: bool) -> None:
        self._column = 0
        self.console.print()
        if finish == "interrupted":
            say(
                "stopped; what was written stays in the conversation"
                if kept
                else "stopped before a word was written; the message is dropped"
            )
        elif finish == "length":
            say("cut at --max-new-tokens, or at the end of the base's window")
