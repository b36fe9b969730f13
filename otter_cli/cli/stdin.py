"""Lines of stdin as text: UTF-8 in every locale."""

import sys
from collections.abc import Iterator

from otter_cli.core.errors import OtterError


def lines_of_stdin() -> Iterator[str]:
    """Without their ends. Raises OtterError for bytes that are not UTF-8.

    Decoded by hand: a locale decodes stdin strictly, or leaves halves of characters in it.
    """
    for number, line in enumerate(getattr(sys.stdin, "buffer", sys.stdin), 1):
        if isinstance(line, str):
            yield line.rstrip("\r\n")
            continue
        try:
            yield line.decode("utf-8").rstrip("\r\n")
        except UnicodeDecodeError as error:
            raise OtterError(
                f"stdin, line {number}: byte {error.start + 1} (0x{line[error.start]:02x}) is not "
                "UTF-8",
                hint="convert it, e.g. `iconv -f latin1 -t utf-8`",
            ) from error
