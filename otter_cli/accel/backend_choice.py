"""The user's choice of a backend, from the environment."""

from __future__ import annotations

import os

from otter_cli.core.errors import OtterError

BACKEND_VARIABLE = "OTTER_BACKEND"
BACKENDS = ("torch", "packed", "native")


def chosen_backend() -> str:
    """The backend that `OTTER_BACKEND` names; "" where the fastest is used that supports a call.
    Raises OtterError for any other value."""
    chosen = os.environ.get(BACKEND_VARIABLE, "")
    if chosen and chosen not in BACKENDS:
        raise OtterError(
            f"{BACKEND_VARIABLE}={chosen}: there is no such backend of the inserted stream",
            hint=f"set it to {', '.join(BACKENDS[:-1])} or {BACKENDS[-1]}, or unset it",
        )
    return chosen


def cannot_run_native(reason: str) -> OtterError:
    """For calls that native code does not support, where the user requires it."""
    return OtterError(
        f"{BACKEND_VARIABLE}=native, but native code cannot run the inserted stream: {reason}",
        hint=f"unset {BACKEND_VARIABLE}; torch's operations then run what native code does not",
    )
