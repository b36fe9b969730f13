"""transformers and tokenizers at work on a file from strangers: what they raise, in our words."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from otter_cli.core.errors import OtterError


@contextmanager
def read_by_transformers(what: str, source: Path) -> Iterator[None]:
    """OtterError for whatever the block raises; errors of the operating system pass as they are."""
    try:
        yield
    except (OtterError, MemoryError):
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno:
            raise
        # tokenizers raises bare Exceptions, and a damaged header can raise any other.
        first_line = str(error).strip().partition("\n")[0] or type(error).__name__
        raise OtterError(
            f"{source}: transformers cannot read its {what}: {first_line}",
            hint="the file is damaged, or of a form that transformers does not import: use the "
            "model's safetensors checkpoint",
        ) from error
