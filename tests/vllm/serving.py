"""A server of an exported graft, in a process of its own, for as long as a test module needs it."""

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.vllm.conftest import ENVIRONMENT


@contextmanager
def serve(folder: Path, log: Path, *more: str) -> Iterator[str]:
    """Its address, http://HOST:PORT, once it answers."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        # What `vllm serve` runs; the command itself asks for the version of a package called vllm,
        # which the CPU build is not.
        *[sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder)],
        *["--served-model-name", "graft", "--host", "127.0.0.1", "--port", str(port)],
        *["--dtype", "float32", "--max-model-len", "512", "--enforce-eager", *more],
    ]
    with log.open("w") as talk:
        process = subprocess.Popen(
            command, stdout=talk, stderr=subprocess.STDOUT, env={**os.environ, **ENVIRONMENT}
        )
    try:
        _wait(process, f"http://127.0.0.1:{port}/health", log)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(60)


def _wait(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    for _ in range(1200):
        assert process.poll() is None, log.read_text()[-6000:]
        try:
            urllib.request.urlopen(url, timeout=5)
            return
        except (urllib.error.URLError, TimeoutError, ConnectionError):
            time.sleep(0.5)
    pytest.fail(log.read_text()[-6000:])
