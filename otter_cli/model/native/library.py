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

from otter_cli.core.console import say, warn
from otter_cli.core.private import NotPrivate, cache_folder
from otter_cli.model.native.store import load_compiled

SWITCH = "OTTER_NATIVE"
_SOURCE = Path(__file__).with_name("stream.cpp")
_FLAGS = ("-O3", "-march=native", "-std=c++17", "-fno-math-errno", "-shared", "-fPIC")
_SECONDS = 120


def library() -> Any | None:
    """Its functions, or None: where `OTTER_NATIVE=0`, no compiler makes them, or the user's cache
    folder is not private. What is compiled lies there, under a name of its source, compiler, flags
    and processor."""
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
        return _compiled(compiler), ""
    except NotPrivate as error:
        warn(f"native code is not used: {error}")
        return None, str(error)
    except (OSError, subprocess.SubprocessError) as error:
        return None, f"{Path(compiler).name}: {_told(error)}"
    except RuntimeError as error:  # of Path.home, where a user has none
        return None, str(error)


def _compiled(compiler: str) -> ctypes.CDLL:
    # torch runs its own threads by OpenMP too: one runtime, and one set of threads.
    try:
        return _load(compiler, ("-fopenmp",))
    except subprocess.CalledProcessError:
        return _load(compiler, ())


def _load(compiler: str, more: tuple[str, ...]) -> ctypes.CDLL:
    def compile_to(path: Path) -> None:
        say("compiling the inserted stream for this processor, once")
        subprocess.run(
            [compiler, *_FLAGS, *more, str(_SOURCE), "-o", str(path)],
            check=True,
            capture_output=True,
            text=True,
            timeout=_SECONDS,
        )

    return load_compiled(cache_folder(), _key(compiler, more), compile_to)


def _key(compiler: str, more: tuple[str, ...]) -> str:
    version = subprocess.run(
        [compiler, "--version"], check=True, capture_output=True, text=True, timeout=_SECONDS
    ).stdout
    flags = (*_FLAGS, *more)
    known = (compiler, version, *flags, platform.machine(), _processor(), _SOURCE.read_text())
    return hashlib.sha256("\0".join(known).encode()).hexdigest()[:32]


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
