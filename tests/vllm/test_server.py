"""`vllm serve` with ten clients at once: each has its own signals and its own strength."""

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from otter_cli.serving.vllm.client import SignalReader
from tests.vllm.conftest import ENVIRONMENT
from tests.vllm.support import expected

CLIENTS = 10


@pytest.fixture(scope="module")
def server(served: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        # What `vllm serve` runs; the command itself asks for the version of a package called vllm,
        # which the CPU build is not.
        *[sys.executable, "-m", "vllm.entrypoints.openai.api_server"],
        *["--model", str(served["base"])],
        *["--served-model-name", "graft", "--host", "127.0.0.1", "--port", str(port)],
        *["--dtype", "float32", "--max-model-len", "512", "--enforce-eager"],
    ]
    log = tmp_path_factory.mktemp("server") / "log"
    with log.open("w") as talk:
        process = subprocess.Popen(
            command, stdout=talk, stderr=subprocess.STDOUT, env={**os.environ, **ENVIRONMENT}
        )
    try:
        _wait(process, f"http://127.0.0.1:{port}/health", log)
        yield f"http://127.0.0.1:{port}/v1"
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


@pytest.fixture(scope="module")
def client(server: str) -> Any:
    from openai import OpenAI

    return OpenAI(base_url=server, api_key="none", timeout=600, max_retries=0)


@pytest.fixture
def reader(served: dict[str, Path]) -> SignalReader:
    return SignalReader.from_folder(served["base"])


def complete(client: Any, prompt: list[int], **keywords: Any) -> Any:
    return client.completions.create(
        model="graft", prompt=prompt, temperature=0, max_tokens=12, **keywords
    ).choices[0]


def test_ten_clients_get_their_own(
    client: Any, reader: SignalReader, grafts: dict[str, Path]
) -> None:
    """Even ones ask for signals, odd ones for guidance; alone they get the same."""
    prompts = [[10 + i, 200 + 3 * i, 77, 400 + i] for i in range(CLIENTS)]

    def ask(i: int) -> dict[str, Any]:
        if i % 2:
            return reader.completion(guide="value", strength=float(i - 5))
        return reader.completion(["reward", "tone"] if i % 4 else ["value"])

    with ThreadPoolExecutor(CLIENTS) as pool:
        together = list(pool.map(lambda i: complete(client, prompts[i], **ask(i)), range(CLIENTS)))
    for i, choice in enumerate(together):
        assert choice.text == complete(client, prompts[i], **ask(i)).text
        read = reader.read(choice)
        if i % 2:
            assert not read
            continue
        tokens = [int(t.removeprefix("token_id:")) for t in choice.logprobs.tokens]
        wanted = expected(grafts["base"], prompts[i], tokens)
        assert read.keys() == ({"reward", "tone"} if i % 4 else {"value"})
        for name, scores in read.items():
            assert len(scores) == len(tokens)
            flat = [x for s in scores for x in (s if isinstance(s, list) else [s])]
            assert flat == pytest.approx(wanted[name].flatten().tolist(), abs=1e-4)


def test_streamed_pieces_carry_their_signals(client: Any, reader: SignalReader) -> None:
    prompt, keywords = [10, 200, 77, 400], reader.completion(["reward"])
    whole = reader.read(complete(client, prompt, **keywords))["reward"]
    pieces = client.completions.create(
        model="graft", prompt=prompt, temperature=0, max_tokens=12, stream=True, **keywords
    )
    streamed = [s for piece in pieces for s in reader.read(piece.choices[0]).get("reward", [])]
    assert streamed == pytest.approx(whole, abs=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"otter_signals": "rewart"}, "did you mean 'reward'"),
        ({"otter_guide": "reward", "otter_strength": 1.0}, "cannot guide in this engine"),
        ({"otter_signals": "reward"}, "logprobs=1"),
    ],
)
def test_what_has_no_meaning_is_status_400_with_a_message(
    client: Any, arguments: dict[str, Any], message: str
) -> None:
    from openai import BadRequestError

    with pytest.raises(BadRequestError) as error:
        complete(client, [10, 200], extra_body={"vllm_xargs": arguments})
    assert error.value.status_code == 400 and message in str(error.value)
