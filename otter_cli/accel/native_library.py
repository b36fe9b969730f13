"""Compile, store and load the native library, and call it.

The library is built by the compiler of this machine, stored in a folder private to the user, and
checked before it is loaded: its owner, its content address and the version of its C structs."""

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
from array import array
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

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

# Compiles to the path that it is given.
CompileTo = Callable[[Path], None]


def load_compiled(
    folder: Path, key: str, compile_to: CompileTo, *, patience: float = 150.0
) -> ctypes.CDLL:
    """The code of `key`, compiled unless it is kept. Processes that want it at once wait for the
    first, for `patience` seconds. Raises OSError where the folder is not private or the code cannot
    be kept, and what `compile_to` raises."""
    with private_folder(folder) as kept:
        library = _load_entry(folder, kept, key)
        if library is not None:
            return library
        with _locked(kept, patience):
            # Another process may have compiled it while this one waited.
            library = _load_entry(folder, kept, key)
            if library is None:
                _sweep(kept, key)
                _compile(folder, kept, key, compile_to)
                library = _load_entry(folder, kept, key)
    if library is None:
        raise OSError(f"{folder}: compiled code reads otherwise than it was written")
    return library


def _load_entry(folder: Path, kept: int, key: str) -> ctypes.CDLL | None:
    for name in sorted(os.listdir(kept)):
        if name.startswith(f"stream-{key}-") and name.endswith(".so"):
            library = _load_file(folder, kept, name)
            if library is not None:
                return library
    return None


def _load_file(folder: Path, kept: int, name: str) -> ctypes.CDLL | None:
    """None where the file is not private, or its bytes are not those that were compiled."""
    try:
        with private_file(kept, name) as file:
            if name.rpartition("-")[2] != f"{_digest(file)}.so":
                return None
            return ctypes.CDLL(str(path_of_descriptor(kept, folder) / name))
    except OSError:
        return None


def _digest(file: int) -> str:
    with open(file, "rb", closefd=False) as reader:
        return hashlib.file_digest(reader, "sha256").hexdigest()


@contextmanager
def _locked(kept: int, patience: float) -> Iterator[None]:
    """One compilation at a time; the operating system frees the lock of a process that dies."""
    until = time.monotonic() + patience
    while True:
        try:
            fcntl.flock(kept, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > until:
                raise TimeoutError(f"another process compiles for {patience:.0f} s") from None
            time.sleep(_POLL_SECONDS)
        else:
            break
    try:
        yield
    finally:
        fcntl.flock(kept, fcntl.LOCK_UN)


def _sweep(kept: int, key: str) -> None:
    """Removes what killed compilations left, and entries of this key, which did not load."""
    for name in os.listdir(kept):
        if name.startswith((_STAGING, f"stream-{key}-")):
            if stat.S_ISDIR(os.lstat(name, dir_fd=kept).st_mode):
                os.rmdir(name, dir_fd=kept)
            else:
                os.unlink(name, dir_fd=kept)


def _compile(folder: Path, kept: int, key: str, compile_to: CompileTo) -> None:
    # A name of its own: the compiler of a killed process may still write to another.
    staging = f"{_STAGING}{os.getpid()}-{secrets.token_hex(4)}"
    try:
        compile_to(folder / staging)
        os.chmod(staging, 0o700, dir_fd=kept)  # whatever the user's umask is
        with private_file(kept, staging) as file:
            os.fsync(file)
            digest = _digest(file)
        os.rename(staging, f"stream-{key}-{digest}.so", src_dir_fd=kept, dst_dir_fd=kept)
        os.fsync(kept)
    finally:
        if staging in os.listdir(kept):
            os.unlink(staging, dir_fd=kept)


ENVIRONMENT_SWITCH = "OTTER_NATIVE"
_SOURCE = Path(__file__).with_name("stream.cpp")
_FLAGS = ("-O3", "-march=native", "-std=c++17", "-fno-math-errno", "-shared", "-fPIC")
_SECONDS = 120


def load_native() -> Any | None:
    """Its functions, or None: where `OTTER_NATIVE=0`, no compiler makes them, or the user's cache
    folder is not private. What is compiled lies there, under a name of its source, compiler, flags
    and processor."""
    return _load_once()[0]


def native_status() -> str:
    """By what this process runs streams of few tokens on the processor."""
    why_not = _load_once()[1]
    return f"torch's operations ({why_not})" if why_not else "native code where it can"


@cache
def _load_once() -> tuple[Any | None, str]:
    """The functions; or why there are none."""
    if os.environ.get(ENVIRONMENT_SWITCH) == "0":
        return None, f"{ENVIRONMENT_SWITCH}=0"
    wanted = os.environ.get("CXX", "c++")
    compiler = shutil.which(wanted)
    if compiler is None:
        return None, f"no C++ compiler {wanted!r}"
    try:
        return _load_or_compile(compiler), ""
    except NotPrivate as error:
        warn(f"native code is not used: {error}")
        return None, str(error)
    except (OSError, subprocess.SubprocessError) as error:
        return None, f"{Path(compiler).name}: {_first_line(error)}"
    except RuntimeError as error:  # of Path.home, where a user has none
        return None, str(error)


def _load_or_compile(compiler: str) -> ctypes.CDLL:
    # torch runs its own threads by OpenMP too: one runtime, and one set of threads.
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


def _first_line(error: Exception) -> str:
    stderr = str(getattr(error, "stderr", None) or "").strip()
    return (stderr or str(error)).splitlines()[0][:200]


_INTEGER_FIELDS = """batch tokens layers hidden in_heads in_out in_units in_down heads kv_heads
head_dim units own_kv slots first_slot mask mask_of_batch mask_of_token turn_of_batch half"""
MASK_NONE, MASK_CAUSAL, MASK_ADDITIVE, MASK_BOOLEAN = range(4)
WEIGHTS_PER_LAYER = 18  # numbers of a layer in Weights
POINTERS_OF_HEADS = 11  # of those in Taps that heads alone need


class StreamCall(ctypes.Structure):
    """Sizes; all that is not given is zero."""

    _fields_ = [
        *[(name, ctypes.c_int64) for name in _INTEGER_FIELDS.split()],
        ("eps", ctypes.c_double),
        ("scale", ctypes.c_double),
        ("pages", ctypes.c_void_p),
    ]


class PagedCache(ctypes.Structure):
    """A paged cache. It does not keep alive what it points at."""

    _fields_ = [
        *[
            (name, ctypes.c_int64)
            for name in ["size", "half", "of_block", "of_head", "of_sequence"]
        ],
        *[(name, ctypes.c_void_p) for name in ["table", "sequence", "seen"]],
    ]


def array_address(numbers: array[int], first: int = 0) -> ctypes.c_void_p:
    """Where native code finds them, as long as the array lives and is not added to."""
    return ctypes.c_void_p(numbers.buffer_info()[0] + first * numbers.itemsize)


class TensorAddresses:
    """Addresses of numbers one after the other, in single precision unless told otherwise: of a
    tensor, or of what it was converted to, which lives as long as this."""

    def __init__(self) -> None:
        self.held: list[Tensor] = []

    def at(self, tensor: Tensor | None, dtype: torch.dtype = torch.float32) -> int:
        assert tensor is not None
        if tensor.dtype is not dtype or not tensor.is_contiguous():
            tensor = tensor.to(dtype).contiguous()
            self.held.append(tensor)
        return tensor.data_ptr()

    def kept(self, tensor: Tensor | None, dtype: torch.dtype = torch.float32) -> int:
        """The address of a copy that lives as long as this; 0 of None."""
        if tensor is None:
            return 0
        self.held.append(tensor.detach().to(dtype, copy=True).contiguous())
        return self.held[-1].data_ptr()
