"""Starts vLLM's server over a graft, with the plugin and with signals in OpenAI's schema.

The server is a process of its own. Signals that end this process go on to it, and it then finishes
what it is writing. An export that was made for it is removed with it.
"""

from __future__ import annotations

import os
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from otter_cli.core.console import say
from otter_cli.core.distribution import missing_extra
from otter_cli.core.strict_files import read_json_object
from otter_cli.serving.vllm.engine_checks import CONFIG
from otter_cli.serving.vllm.export import export_vllm
from otter_cli.serving.vllm.requests import SignalOutputs, parse_insertions

if TYPE_CHECKING:
    from otter_cli.serving.options import ServeOptions

MIDDLEWARE = "otter_cli.serving.vllm.middleware.SignalsMiddleware"
# How many log-probabilities a request may have beside signals, as OpenAI allows.
CLIENT_LOGPROBS = 20


def serve_vllm(options: ServeOptions) -> int:
    """Serves a graft, or an export of it, until the server ends. The exit code: 0 where Ctrl-C or
    SIGTERM ended it. Raises OtterError where vLLM is not installed, and for grafts that it does not
    run."""
    if find_spec("vllm") is None:
        raise missing_extra(
            "otter serve --engine vllm", "vllm", "vllm", instead="--engine embedded needs none"
        )
    with exported(options.folder) as export:
        port = options.port or _free_port(options.host)
        command = vllm_command(export, options, port)
        say(f"vLLM will serve {options.name!r} at http://{options.host}:{port}, once it has loaded")
        # In a session of its own, so that Ctrl-C reaches it once, from here.
        process = subprocess.Popen(
            command, env=vllm_environment(options), start_new_session=True, stdout=sys.stderr
        )
        with _passed_on(process) as passed:
            code = process.wait()
    return 0 if passed else code


def vllm_command(export: Path, options: ServeOptions, port: int) -> list[str]:
    """The command of the server. The user's own options come last, where they win."""
    described = read_json_object(export / CONFIG)["otter"]
    outputs = SignalOutputs.of_insertions(parse_insertions(described))
    length = options.max_length
    return [
        # What `vllm serve` runs. That command asks for a package called vllm, which builds for a
        # CPU are not.
        *[sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(export)],
        *["--served-model-name", options.name, "--host", options.host, "--port", str(port)],
        *["--max-logprobs", str(CLIENT_LOGPROBS + len(outputs.outputs))],
        *["--shutdown-timeout", str(round(options.drain)), "--middleware", MIDDLEWARE],
        *([] if length is None else ["--max-model-len", str(length)]),
        *shlex.split(options.vllm_args or ""),
    ]


def vllm_environment(options: ServeOptions) -> dict[str, str]:
    own = {"VLLM_USE_V2_MODEL_RUNNER": "0", **os.environ}
    # In the environment, because other users see the arguments of a process.
    return own if options.api_key is None else {**own, "VLLM_API_KEY": options.api_key}


def _free_port(host: str) -> int:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, 0), family=family) as listener:
        return int(listener.getsockname()[1])


@contextmanager
def exported(folder: Path) -> Iterator[Path]:
    """The folder that vLLM loads: `folder` where it is an export, or a new one beside it."""
    if "otter" in read_json_object(folder / CONFIG):
        yield folder
        return
    # Beside the graft, where files are linked and not copied.
    place = folder.resolve().parent
    where = place if os.access(place, os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-vllm-", dir=where) as temporary:
        export_vllm(folder, Path(temporary) / "export")
        yield Path(temporary) / "export"


@contextmanager
def _passed_on(process: subprocess.Popen[bytes]) -> Iterator[list[int]]:
    """Passes Ctrl-C and SIGTERM on to the process; the signals that came."""
    came: list[int] = []

    def pass_on(number: int, _: object) -> None:
        came.append(number)
        process.send_signal(number)

    numbers = (signal.SIGINT, signal.SIGTERM)
    previous = {number: signal.signal(number, pass_on) for number in numbers}
    try:
        yield came
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
        if process.poll() is None:
            process.terminate()
            process.wait()
