"""transformers and tokenizers at work on a GGUF file: what they raise, in our words."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path

from otter_cli.core.library_errors import library_reads


def read_by_transformers(what: str, source: Path) -> AbstractContextManager[None]:
    """OtterError for whatever the block raises, a panic of Rust code included."""
    return library_reads(
        source,
        f"its {what}",
        library="transformers",
        hint="the file is damaged, or of a form that transformers does not import: use the "
        "model's safetensors checkpoint",
    )
