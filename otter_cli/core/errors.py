"""Errors that a user can act on: what is wrong, where it is wrong, and what to do about it.

`OtterError(what, hint)` is the one class for bad usage and bad input. `did_you_mean` suggests a
name for a hint. `from_os_error` translates errors of the operating system.
"""

import difflib
import errno
from collections.abc import Iterable, Sequence
from pathlib import Path

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
    """A check ran to its end, and failed."""

    exit_code = 1


def from_os_error(error: OSError, doing: str) -> OtterError:
    """An error of the operating system while `doing` something, such as "read FILE".

    Raise it `from error`, so that `--debug` shows where it came from.
    """
    reason = error.strerror or str(error) or type(error).__name__
    where = f" ({error.filename})" if error.filename and str(error.filename) not in doing else ""
    return OtterError(
        f"cannot {doing}: {reason}{where}", hint=_OS_ERROR_HINTS.get(error.errno or 0, "")
    )


def changed_while_read(path: str | Path) -> OtterError:
    return OtterError(
        f"{path} changed while it was being read",
        hint="wait until the program that writes it has ended",
    )


def closest(name: str, options: Iterable[str]) -> str | None:
    """The option most like `name`, regardless of case. None where none is near."""
    by_lower = {option.lower(): option for option in options}
    matches = difflib.get_close_matches(name.lower(), by_lower, n=1, cutoff=0.6)
    return by_lower[matches[0]] if matches else None


def did_you_mean(name: str, options: Iterable[str]) -> str:
    """The beginning of a hint: `did you mean 'x'? `, or empty where no option is near."""
    near = closest(name, options)
    return f"did you mean {near!r}? " if near else ""


def label_index(label: str | None, labels: Sequence[str], owner: str) -> int:
    """The index of a label of a signal or teacher, 0 for None. Raises OtterError where `labels`
    lack it."""
    if label is None:
        return 0
    if label not in labels:
        raise OtterError(
            f"{owner} has no label {label!r}",
            hint=did_you_mean(label, labels) + f"its labels: {', '.join(labels) or 'none'}",
        )
    return labels.index(label)
