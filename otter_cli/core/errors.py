"""Errors that a user can act on: what is wrong, where it is wrong, and what to do about it.

`OtterError(what, hint)` is the one class for bad usage and bad input. `closest` finds the name for
a "did you mean" hint. Errors of the operating system are translated here as well.
"""

import difflib
import errno
from collections.abc import Iterable, Sequence

_OS_ERROR_HINTS = {
    errno.ENOSPC: "free some space on that file system, or choose a target on another one",
    errno.EDQUOT: "your quota is used up: free some space, or choose a target elsewhere",
    errno.EROFS: "that file system is read-only: choose a target you can write to",
    errno.EACCES: "check the permissions, or choose a path you may use",
    errno.EPERM: "check the permissions, or choose a path you may use",
    errno.ENOENT: "check the path",
    errno.EISDIR: "give a file, not a folder",
    errno.ELOOP: "links lead in a circle: put the file itself there",
    errno.ENAMETOOLONG: "choose a shorter name",
}


class OtterError(Exception):
    """Bad usage or bad input: shown as `error: what` and `hint: hint`, without a traceback."""

    exit_code = 2

    def __init__(self, what: str, *, hint: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.hint = hint


class CheckFailed(OtterError):
    """A check ran to its end, and its answer is no."""

    exit_code = 1


def from_os_error(error: OSError, doing: str) -> OtterError:
    """The operating system's refusal while `doing` something, in our words.

    Raise it `from error`, so that `--debug` still shows where it came from.
    """
    reason = error.strerror or str(error) or type(error).__name__
    where = f" ({error.filename})" if error.filename and str(error.filename) not in doing else ""
    return OtterError(
        f"cannot {doing}: {reason}{where}", hint=_OS_ERROR_HINTS.get(error.errno or 0, "")
    )


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
