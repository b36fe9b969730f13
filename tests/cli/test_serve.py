"""`otter serve` as a process: it listens, drains when it is stopped, and says what is wrong."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.conftest import Otter
from tests.support.grafts import chat_base, random_graft


@pytest.fixture(scope="module")
def endless(tiny_checkpoint: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A toy whose answers have the length that is asked for: it knows no end token."""
    tiny = tiny_checkpoint("llama", max_position_embeddings=1024)
    base = chat_base(tiny, tmp_path_factory.mktemp("serve") / "base")
    settings = json.loads((base / "generation_config.json").read_text())
    del settings["eos_token_id"]
    (base / "generation_config.json").write_text(json.dumps(settings))
    return random_graft(base, base.parent / "toy", signals=("reward",), hidden=8, heads=2, ffn=16)


@contextmanager
def serving(folder: Path, *options: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The process, and its address once it listens."""
    command = [sys.executable, "-m", "otter_cli", "serve", str(folder), "--port", "0", *options]
    environment = {**os.environ, "COLUMNS": "200"}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        try:
            assert process.stderr is not None
            lines = []
            while not (match := re.search(r"at (http://\S+?),", "".join(lines))):
                line = process.stderr.readline()
                assert line, f"it ended: {lines}"
                lines.append(line)
            yield process, match[1]
        finally:
            process.kill()


def answer(address: str, tokens: int) -> tuple[int, Any]:
    body = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": tokens}
    reply = httpx.post(f"{address}/v1/chat/completions", json=body, timeout=120)
    return reply.status_code, reply.json()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_under_load_lets_every_answer_end(endless: Path, number: int) -> None:
    with serving(endless, "--max-batch", "2", "--json") as (process, address):
        replies: list[tuple[int, Any]] = []
        clients = [
            threading.Thread(target=lambda: replies.append(answer(address, 250)), daemon=True)
            for _ in range(8)
        ]
        for client in clients:
            client.start()
        deadline = time.monotonic() + 60
        while "otter_waiting_answers 0" in httpx.get(f"{address}/metrics").text:
            assert time.monotonic() < deadline, "nothing waits: the answers are too short"
        process.send_signal(number)
        while _listens(address):  # a connection that was open may still be served
            assert time.monotonic() < deadline
            time.sleep(0.05)
        for client in clients:
            client.join(120)
        out, err = process.communicate(timeout=60)
    assert [status for status, _ in replies] == [200] * 8
    assert all(body["usage"]["completion_tokens"] == 250 for _, body in replies)
    assert process.returncode == 0, err
    assert json.loads(out) == {"model": "toy", "answers": 8, "tokens": 2000}
    assert "running answers may end" in err and "Traceback" not in err


@pytest.mark.slow
def test_a_second_signal_stops_at_once(endless: Path) -> None:
    with serving(endless) as (process, address):
        replies: list[tuple[int, Any]] = []
        client = threading.Thread(target=lambda: replies.append(answer(address, 900)), daemon=True)
        client.start()
        while "otter_running_answers 1.0" not in httpx.get(f"{address}/metrics").text:
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        assert process.stderr is not None and "stopping" in process.stderr.readline()
        started = time.monotonic()
        process.send_signal(signal.SIGINT)
        assert "Traceback" not in process.communicate(timeout=30)[1]
        assert time.monotonic() - started < 10
        client.join(10)
    [(status, body)] = replies
    assert status == 503 and "was stopped" in body["error"]["message"]


def _listens(address: str) -> bool:
    try:
        httpx.get(f"{address}/health")
    except httpx.TransportError:
        return False
    return True


def test_an_address_that_is_taken_is_said_before_the_model_loads(
    otter_here: Otter, tmp_path: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = otter_here("serve", tmp_path / "absent", "--port", port)
    assert done.returncode == 2 and f"cannot listen on 127.0.0.1, port {port}" in done.stderr


def test_a_missing_package_names_the_extra(
    otter_here: Otter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from otter_cli.cli import serve

    monkeypatch.setattr(serve, "find_spec", lambda name: None)
    done = otter_here("serve", tmp_path)
    assert done.returncode == 2
    assert "otter serve needs the package fastapi" in done.stderr
    assert "pip install 'otter-lm[serve]'" in done.stderr


def test_a_folder_that_is_no_graft(otter_here: Otter, tiny_llama: Path) -> None:
    done = otter_here("serve", tiny_llama, "--port", 0)
    assert done.returncode == 2 and "error:" in done.stderr


def test_help_imports_no_model_library() -> None:
    code = (
        "import sys; from otter_cli.cli.main import main; main(['serve', '--help']);"
        "assert not sys.modules.keys() & {'torch', 'transformers', 'numpy', 'fastapi'}"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)
