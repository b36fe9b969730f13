"""Where the prompts of `otter generate` come from, and their tokens."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from otter_cli.core.errors import OtterError
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
    lines = [line.rstrip("\n") for line in sys.stdin if line.strip()]
    if not lines:
        raise OtterError("stdin holds no prompt", hint="one prompt a line")
    return lines


def encoded_of(tokenizer: Any, text: str, chat: bool) -> list[int]:
    """The tokens of a prompt, in the base's chat template where asked. Raises OtterError where it
    has none."""
    if not chat:
        return list(tokenizer(text)["input_ids"])
    if not tokenizer.chat_template:
        raise OtterError("the base's tokenizer has no chat template", hint="leave --chat out")
    turn = [{"role": "user", "content": text}]
    written = tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
    return list(tokenizer(written, add_special_tokens=False)["input_ids"])
