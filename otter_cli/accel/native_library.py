"""Compiling, storing, loading and calling the native library.

This machine's compiler builds it for this processor. It is stored in a folder private to the user
(0700), atomically, under a name made of the digests of its source, compiler, flags and processor,
and of its bytes. Owner, bytes and the sizes of the C structures are checked before it is used."""

from __future__ import annotations

import ctypes
import fcntl
import hashlib
import os
import platform
import secrets
import shutil
import stat
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from otter_cli.accel.backend_choice import BACKEND_VARIABLE, chosen_backend
from otter_cli.accel.native_abi import abi_difference
from otter_cli.core.console import say, warn
from otter_cli.core.private_files import (
    NotPrivate,
    otter_cache_folder,
    path_of_descriptor,
    private_file,
    private_folder,
)

_STAGING = ".stream-"
_POLL_SECONDS = 0.05

# Compiles the library to a path.
CompileTo = Callable[[Path], None]


def load_compiled(
    folder: Path, key: str, compile_to: CompileTo, *, patience: float = 150.0
) -> ctypes.CDLL:
    """The library of `key`, compiled unless the folder has it. Processes that need it at the same
    time wait for the first, for `patience` seconds. Raises OSError where the folder is not private
    or the library cannot be stored, and what `compile_to` raises."""
    with private_folder(folder) as descriptor:
        library = _load_entry(folder, descriptor, key)
        if library is not None:
            return library
        with _locked(descriptor, patience):
            # Another process may have compiled it while this one waited.
            library = _load_entry(folder, descriptor, key)
            if library is None:
                _sweep(descriptor, key)
                _compile(folder, descriptor, key, compile_to)
                library = _load_entry(folder, descriptor, key)
    if library is None:
        raise OSError(f"{folder}: compiled code is not what was written")
    return library


def _load_entry(folder: Path, descriptor: int, key: str) -> ctypes.CDLL | None:
    for name in sorted(os.listdir(descriptor)):
        if name.startswith(f"stream-{key}-") and name.endswith(".so"):
            library = _load_file(folder, descriptor, name)
            if library is not None:
                return library
    return None


def _load_file(folder: Path, descriptor: int, name: str) -> ctypes.CDLL | None:
    """None where the file is not private, or its bytes do not have the digest of its name."""
    try:
        with private_file(descriptor, name) as file:
            if name.rpartition("-")[2] != f"{_digest(file)}.so":
                return None
            return ctypes.CDLL(str(path_of_descriptor(descriptor, folder) / name))
    except OSError:
        return None


def _digest(file: int) -> str:
    with open(file, "rb", closefd=False) as reader:
        return hashlib.file_digest(reader, "sha256").hexdigest()


@contextmanager
def _locked(descriptor: int, patience: float) -> Iterator[None]:
    """One compilation at a time; the operating system frees the lock of a process that dies."""
    until = time.monotonic() + patience
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > until:
                raise TimeoutError(f"another process compiles for {patience:.0f} s") from None
            time.sleep(_POLL_SECONDS)
        else:
            break
    try:
        yield
    finally:
        fcntl.flock(descriptor, fcntl.LOCK_UN)


def _sweep(descriptor: int, key: str) -> None:
    """Removes files of killed compilations, and entries of this key, which did not load."""
    for name in os.listdir(descriptor):
        if name.startswith((_STAGING, f"stream-{key}-")):
            if stat.S_ISDIR(os.lstat(name, dir_fd=descriptor).st_mode):
                os.rmdir(name, dir_fd=descriptor)
            else:
                os.unlink(name, dir_fd=descriptor)


def _compile(folder: Path, descriptor: int, key: str, compile_to: CompileTo) -> None:
    # A fresh name: the compiler of a killed process may still write to an earlier one.
    staging = f"{_STAGING}{os.getpid()}-{secrets.token_hex(4)}"
    try:
        compile_to(folder / staging)
        os.chmod(staging, 0o700, dir_fd=descriptor)  # whatever the user's umask is
        with private_file(descriptor, staging) as file:
            os.fsync(file)
            digest = _digest(file)
        os.rename(
            staging, f"stream-{key}-{digest}.so", src_dir_fd=descriptor, dst_dir_fd=descriptor
        )
        os.fsync(descriptor)
    finally:
        if staging in os.listdir(descriptor):
            os.unlink(staging, dir_fd=descriptor)


ENVIRONMENT_SWITCH = "OTTER_NATIVE"
_SOURCE = Path(__file__).with_name("stream.cpp")
_HEADER = Path(__file__).with_name("numbers.h")
_FLAGS = ("-O3", "-march=native", "-std=c++17", "-fno-math-errno", "-shared", "-fPIC")
_SECONDS = 120


def load_native() -> Any | None:
    """The library's functions; None where `native_refusal` has a reason."""
    return None if _declined() else _load_once()[0]


def native_refusal(*, build: bool = True) -> str:
    """Why this process has no native code; "" where it has: with OTTER_NATIVE=0 or another backend
    chosen, without a working compiler, where the user's cache folder is not private, and where the
    C structures are not those of native_abi.py. Without `build`, nothing is compiled, and a
    compiler is taken to work."""
    declined = _declined()
    if declined or build:
        return declined or _load_once()[1]
    return "" if _compiler() else _no_compiler()


def bfloat16_products() -> str:
    """How the loaded library multiplies bfloat16, in words."""
    library = load_native()
    if library is None:
        return ""
    return "by the processor's dot products" if library.otter_bfloat16() else "in single precision"


def _declined() -> str:
    """What the user has set against native code."""
    if os.environ.get(ENVIRONMENT_SWITCH) == "0":
        return f"{ENVIRONMENT_SWITCH}=0"
    chosen = chosen_backend()
    return f"{BACKEND_VARIABLE}={chosen}" if chosen in ("torch", "packed") else ""


def _compiler() -> str | None:
    return shutil.which(os.environ.get("CXX", "c++"))


def _no_compiler() -> str:
    return f"no C++ compiler {os.environ.get('CXX', 'c++')!r}"


@cache
def _load_once() -> tuple[Any | None, str]:
    """The functions, or the reason why there are none."""
    compiler = _compiler()
    if compiler is None:
        return None, _no_compiler()
    try:
        library = _load_or_compile(compiler)
        difference = abi_difference(library)
        return (None, difference) if difference else (library, "")
    except NotPrivate as error:
        warn(f"native code is not used: {error}")
        return None, str(error)
    except (OSError, subprocess.SubprocessError) as error:
        return None, f"{Path(compiler).name}: {_first_line(error)}"
    except RuntimeError as error:  # of Path.home, where a user has none
        return None, str(error)


def _load_or_compile(compiler: str) -> ctypes.CDLL:
    # torch uses OpenMP too, so both share one runtime and one set of threads.
    try:
        return _load_with_flags(compiler, ("-fopenmp",))
    except subprocess.CalledProcessError:
        return _load_with_flags(compiler, ())


def _load_with_flags(compiler: str, more: tuple[str, ...]) -> ctypes.CDLL:
    def compile_to(path: Path) -> None:
        say("compiling the inserted stream for this processor, once")
        subprocess.run(
            [compiler, *_FLAGS, *more, str(_SOURCE), "-o", str(path)],
            check=True,
            capture_output=True,
            text=True,
            timeout=_SECONDS,
        )

    return load_compiled(otter_cache_folder(), _key(compiler, more), compile_to)


def _key(compiler: str, more: tuple[str, ...]) -> str:
    version = subprocess.run(
        [compiler, "--version"], check=True, capture_output=True, text=True, timeout=_SECONDS
    ).stdout
    flags = (*_FLAGS, *more)
    parts = (compiler, version, *flags, platform.machine(), _processor())
    sources = (_SOURCE.read_text(), _HEADER.read_text())
    return hashlib.sha256("\0".join(parts + sources).encode()).hexdigest()[:32]


def _processor() -> str:
    """What `-march=native` depends on: different machines may share a home folder."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    fields = ("model name", "flags", "Features", "CPU part")
    return "".join(sorted({line for line in lines if line.startswith(fields)}))


def _first_line(error: Exception) -> str:
    stderr = str(getattr(error, "stderr", None) or "").strip()
    return (stderr or str(error)).splitlines()[0][:200]
