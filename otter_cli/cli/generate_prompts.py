"""Where the prompts of `otter generate` come from, and their tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from otter_cli.cli.stdin import lines_of_stdin
from otter_cli.core.errors import OtterError
from otter_cli.data.chat_template import ChatText
from otter_cli.data.prompts import Prompt, read_prompts


def prompts_of(prompt: str | None, file: Path | None) -> list[Prompt]:
    """The one prompt, those of a file, or stdin's lines for `-`. Raises OtterError for none."""
    if (prompt is None) == (file is None):
        raise OtterError(
            "give a prompt, or --file, and not both",
            hint='otter generate FOLDER "text", or - to read prompts from stdin',
        )
    if file is not None:
        return read_prompts(file)
    if prompt != "-":
        return [Prompt(str(prompt), 1)]
    lines = [
        Prompt(line, number) for number, line in enumerate(lines_of_stdin(), 1) if line.strip()
    ]
    if not lines:
        raise OtterError("stdin holds no prompt", hint="one prompt a line")
    return lines


def encoded_of(tokenizer: Any, prompt: Prompt, chat: bool, file: Path | None = None) -> list[int]:
    """The tokens of a prompt; with `chat` by the base's template, up to where the answer begins.
    Raises OtterError for messages without `chat`, and for `chat` without a template."""
    text = prompt.written(tokenizer, chat, file)
    return list(text.ids) if isinstance(text, ChatText) else list(tokenizer(text)["input_ids"])
