import errno
import pickle

import pytest

from otter_cli.core.errors import CheckFailed, OtterError, closest, from_os_error


def test_an_error_carries_what_and_hint() -> None:
    error = OtterError("no such folder", hint="check the path")
    assert (str(error), error.what, error.hint) == ("no such folder",) * 2 + ("check the path",)


def test_exit_codes_tell_a_failed_check_from_bad_input() -> None:
    assert OtterError("x").exit_code == 2
    assert CheckFailed("x").exit_code == 1
    assert isinstance(CheckFailed("x"), OtterError)


def test_errors_cross_process_borders_whole() -> None:
    copy = pickle.loads(pickle.dumps(CheckFailed("differs", hint="graft again")))
    assert (copy.what, copy.hint, copy.exit_code) == ("differs", "graft again", 1)


@pytest.mark.parametrize(
    ("number", "hint"),
    [(errno.ENOSPC, "free some space"), (errno.EROFS, "read-only"), (errno.EACCES, "permissions")],
)
def test_what_the_system_refuses_comes_with_advice(number: int, hint: str) -> None:
    error = from_os_error(OSError(number, "refused", "/there/file"), "write /there")
    assert error.what == "cannot write /there: refused (/there/file)"
    assert hint in error.hint


def test_the_place_is_not_named_twice() -> None:
    error = from_os_error(OSError(errno.ENOENT, "No such file", "/there"), "read /there")
    assert error.what == "cannot read /there: No such file"


def test_an_unknown_refusal_still_says_what_happened() -> None:
    assert from_os_error(OSError("odd"), "read it").what == "cannot read it: odd"


OPTIONS = ["learning_rate", "batch_size", "steps"]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("learning_rat", "learning_rate"),
        ("Batch-Size", "batch_size"),
        ("STEPS", "steps"),
        ("temperature", None),
        ("", None),
    ],
)
def test_closest(name: str, expected: str | None) -> None:
    assert closest(name, OPTIONS) == expected


def test_the_option_keeps_its_own_spelling() -> None:
    assert closest("bf17", ["F32", "BF16"]) == "BF16"
    assert closest("anything", []) is None
