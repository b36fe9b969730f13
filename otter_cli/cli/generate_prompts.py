"""Where the prompts of `otter generate` come from, and their tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from otter_cli.cli.stdin import lines_of_stdin
from otter_cli.core.errors import OtterError
from otter_cli.data import chat_template
from otter_cli.data.prompts import read_prompts


def prompts_of(prompt: str | None, file: Path | None) -> list[str]:
    """The one prompt, those of a file, or stdin's lines for `-`. Raises OtterError for none."""
    if (prompt is None) == (file is None):
        raise OtterError(
            "give a prompt, or --file, and not both",
            hint='otter generate FOLDER "text", or - to read prompts from stdin',
        )
    if file is not None:
        return [row.text for row in read_prompts(file)]
    if prompt != "-":
        return [str(prompt)]
    lines = [line for line in lines_of_stdin() if line.strip()]
    if not lines:
        raise OtterError("stdin holds no prompt", hint="one prompt a line")
    return lines


def encoded_of(tokenizer: Any, text: str, chat: bool) -> list[int]:
    """The tokens of a prompt; with `chat` of a user's message, up to where the answer begins."""
    if not chat:
        return list(tokenizer(text)["input_ids"])
    return list(chat_template.chat(tokenizer, chat_template.user_turn(text), generate=True).ids)
