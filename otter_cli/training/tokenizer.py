"""The tokenizer of a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def load_tokenizer(folder: str | Path) -> Any:
    """The strict loader's. It is imported late: a recipe is read and refused without torch."""
    from otter_cli.model import pretrained

    return pretrained.load_tokenizer(folder)
