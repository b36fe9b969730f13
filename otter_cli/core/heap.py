"""What the C library does with memory that was freed."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

_TRIM, _MMAP = -1, -3  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of malloc.h
_ALL, _USUAL = 2**31 - 1, 32 * 2**20  # bytes; glibc's own thresholds grow up to the latter


@contextmanager
def freed_memory_kept() -> Iterator[None]:
    """Freed memory stays with the process, and goes back at the end.

    A step that holds activations frees more than glibc keeps, and the next one would ask the
    system for the same pages again. Nothing happens under another C library."""
    library = ctypes.CDLL(None)
    if not (hasattr(library, "mallopt") and hasattr(library, "malloc_trim")):
        yield
        return
    library.mallopt(_TRIM, _ALL)
    library.mallopt(_MMAP, _ALL)
    try:
        yield
    finally:
        library.mallopt(_TRIM, 2 * _USUAL)
        library.mallopt(_MMAP, _USUAL)
        library.malloc_trim(0)


def release_free_memory() -> None:
    """Give freed memory back to the system, where the C library keeps it; elsewhere nothing."""
    library = ctypes.CDLL(None)
    if hasattr(library, "malloc_trim"):
        library.malloc_trim(0)
