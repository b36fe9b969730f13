"""Data files as recipes name them."""

import os
import re
from pathlib import Path

from otter_cli.core.errors import OtterError

_VARIABLE = re.compile(r"\$(?:(\w+)|\{(\w+)\})")


def find_data(name: str, beside: Path | None = None) -> Path:
    """The file a recipe means: `$NAME` and `~` expanded, else beside the recipe, else from here.

    Raises OtterError for an unset variable and a missing file.
    """
    path = Path(expanded(name)).expanduser()
    tried = [folder / path for folder in ([beside] if beside else []) + [Path()]]
    for candidate in tried:
        if candidate.exists():
            return candidate
    places = " and ".join(dict.fromkeys(str(candidate) for candidate in tried))
    raise OtterError(f"data file {name!r} not found; looked for {places}", hint="check the path")


def expanded(text: str) -> str:
    """`$NAME` and `${NAME}` from the environment. Raises OtterError for one that is not set."""
    return _VARIABLE.sub(_value, text)


def _value(match: re.Match[str]) -> str:
    variable = match[1] or match[2]
    if variable not in os.environ:
        raise OtterError(
            f"{match.string!r}: ${variable} is not set",
            hint=f"set it, e.g. `export {variable}=FOLDER`",
        )
    return os.environ[variable]
