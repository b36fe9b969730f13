"""The native code, compiled for this processor the first time that it is wanted, and kept."""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

from otter_cli.core.console import say

SWITCH = "OTTER_NATIVE"
_SOURCE = Path(__file__).with_name("stream.cpp")
_FLAGS = ("-O3", "-march=native", "-std=c++17", "-fno-math-errno", "-shared", "-fPIC")
_SECONDS = 120


def library() -> Any | None:
    """Its functions, or None: where `OTTER_NATIVE=0`, or no compiler makes them. What is compiled
    lies in the user's cache folder, under a name of its source, compiler and processor."""
    return _loaded()[0]


def by_what() -> str:
    """By what this process runs streams of few tokens on the processor."""
    why_not = _loaded()[1]
    return f"torch's operations ({why_not})" if why_not else "native code where it can"


@cache
def _loaded() -> tuple[Any | None, str]:
    """The functions; or why there are none."""
    if os.environ.get(SWITCH) == "0":
        return None, f"{SWITCH}=0"
    wanted = os.environ.get("CXX", "c++")
    compiler = shutil.which(wanted)
    if compiler is None:
        return None, f"no C++ compiler {wanted!r}"
    try:
        return ctypes.CDLL(str(_compiled(compiler))), ""
    except (OSError, subprocess.SubprocessError) as error:
        return None, f"{Path(compiler).name}: {_told(error)}"
    except RuntimeError as error:  # of Path.home, where a user has none
        return None, str(error)


def _compiled(compiler: str) -> Path:
    # torch runs its own threads by OpenMP too: one runtime, and one set of threads.
    for more in (("-fopenmp",), ()):
        done = folder() / f"stream-{_key(compiler, more)}.so"
        if done.exists():
            return done
        try:
            _compile(compiler, more, done)
        except subprocess.CalledProcessError:
            if not more:
                raise
        else:
            return done
    raise AssertionError


def folder() -> Path:
    """Where compiled code is kept."""
    root = os.environ.get("XDG_CACHE_HOME")
    return Path(root or Path.home() / ".cache") / "otter"


def _compile(compiler: str, more: tuple[str, ...], to: Path) -> None:
    say("compiling the inserted stream for this processor, once")
    to.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    staging = to.with_name(f".{to.name}.{os.getpid()}")
    try:
        subprocess.run(
            [compiler, *_FLAGS, *more, str(_SOURCE), "-o", str(staging)],
            check=True,
            capture_output=True,
            text=True,
            timeout=_SECONDS,
        )
        staging.rename(to)  # whole or not at all, whoever else compiles it
    finally:
        staging.unlink(missing_ok=True)


def _key(compiler: str, more: tuple[str, ...]) -> str:
    version = subprocess.run(
        [compiler, "--version"], check=True, capture_output=True, text=True, timeout=_SECONDS
    ).stdout
    known = (version, *_FLAGS, *more, platform.machine(), _processor(), _SOURCE.read_text())
    return hashlib.sha256("\0".join(known).encode()).hexdigest()[:16]


def _processor() -> str:
    """What `-march=native` goes by: a home folder may be shared by unlike machines."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    told = ("model name", "flags", "Features", "CPU part")
    return "".join(sorted({line for line in lines if line.startswith(told)}))


def _told(error: Exception) -> str:
    stderr = str(getattr(error, "stderr", None) or "").strip()
    return (stderr or str(error)).splitlines()[0][:200]
