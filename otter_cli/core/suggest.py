"""`did you mean`: the nearest of the names that would have worked."""

import difflib
from collections.abc import Iterable, Sequence

from otter_cli.core.errors import OtterError


def closest(name: str, options: Iterable[str]) -> str | None:
    """The option most like `name` regardless of case, or None where nothing is near."""
    by_lower = {option.lower(): option for option in options}
    found = difflib.get_close_matches(name.lower(), by_lower, n=1, cutoff=0.6)
    return by_lower[found[0]] if found else None


def label_index(label: str | None, labels: Sequence[str], owner: str) -> int:
    """Which of the owner's labels is meant, the first by default. Raises OtterError."""
    if label is None:
        return 0
    if label not in labels:
        near = closest(label, labels)
        raise OtterError(
            f"{owner} has no label {label!r}",
            hint=(f"did you mean {near!r}? " if near else "")
            + f"its labels: {', '.join(labels) or 'none'}",
        )
    return labels.index(label)
