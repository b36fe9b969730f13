"""`otter serve OUT --engine vllm` over vLLM itself: the example client runs against it, and the
server ends with us."""

import os
import re
import signal
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
import torch
from transformers import AutoTokenizer

from tests.vllm.conftest import ENVIRONMENT
from tests.vllm.support import reference

TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant:"
LINE = re.compile(r"  (.*) value ([+-]\d+\.\d{3})$", re.MULTILINE)


@contextmanager
def serving(graft: Path, folder: Path) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (folder / "template").write_text(TEMPLATE)
    more = f"--dtype float32 --max-model-len 512 --enforce-eager --chat-template {folder}/template"
    command = [sys.executable, "-m", "otter_cli", "serve", str(graft), "--engine", "vllm"]
    address, log = f"http://127.0.0.1:{port}", folder / "log"
    with (
        log.open("w") as talk,
        subprocess.Popen(
            [*command, "--port", str(port), "--vllm-args", more],
            stdout=talk,
            stderr=subprocess.STDOUT,
            env={**os.environ, **ENVIRONMENT},
        ) as process,
    ):
        try:
            while True:
                assert process.poll() is None, log.read_text()[-6000:]
                try:
                    urllib.request.urlopen(f"{address}/health", timeout=5)
                    break
                except (urllib.error.URLError, TimeoutError, ConnectionError):
                    time.sleep(0.5)
            yield process, address
        finally:
            process.terminate()


def test_the_example_client_gets_the_values_of_the_model(
    grafts: dict[str, Path], base: Path, repository: Path, tmp_path: Path
) -> None:
    graft, text = grafts["base"], "What is a good name for a cat?"
    with serving(graft, tmp_path) as (process, address):
        client = [sys.executable, str(repository / "examples/openai_client.py"), address]
        done = subprocess.run(
            [*client, "value", "3", text], capture_output=True, text=True, timeout=600
        )
        assert done.returncode == 0, done.stderr
        process.send_signal(signal.SIGTERM)
        assert process.wait(120) == 0
    assert sorted(path.name for path in graft.parent.iterdir()) == sorted(grafts)
    plain, guided = (LINE.findall(part) for part in done.stdout.split("guided:"))
    assert len(plain) == 40 and plain != guided
    tokenizer = AutoTokenizer.from_pretrained(base)
    messages = [{"role": "user", "content": text}]
    prompt = tokenizer.apply_chat_template(messages, chat_template=TEMPLATE, return_dict=True)
    assert [float(value) for _, value in plain] == pytest.approx(
        _scores_of_greedy_tokens(graft, prompt.input_ids, 40), abs=6e-4
    )


@torch.no_grad()
def _scores_of_greedy_tokens(graft: Path, prompt: list[int], count: int) -> list[float]:
    """The score of each greedy token, where it was chosen; printed with three digits."""
    tokens, scores = list(prompt), list[float]()
    for _ in range(count):
        out = reference(graft)(torch.tensor([tokens]), signals=("value",))
        tokens.append(int(out.logits[0, -1].argmax()))
        scores.append(float(out.signals["value"][0, -1, tokens[-1]]))
    return scores
