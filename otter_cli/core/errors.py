"""Errors a user can act on: what is wrong and where, and what to do about it."""

import errno

_HINTS = {
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
    return OtterError(f"cannot {doing}: {reason}{where}", hint=_HINTS.get(error.errno or 0, ""))
