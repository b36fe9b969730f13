"""`otter serve --engine vllm` as a process, over a stand-in for vLLM's server that records how it
was started. Over vLLM itself it runs in tests/vllm/test_serve.py."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from otter_cli.core.errors import OtterError
from otter_cli.serving.options import ServeOptions
from otter_cli.serving.vllm.server import MIDDLEWARE, exported, serve_vllm
from tests.support.grafts import random_graft

STAND_IN = """
import json, os, signal, sys
from pathlib import Path

here = Path(os.environ["RECORD"])
model = Path(sys.argv[sys.argv.index("--model") + 1])
signal.signal(signal.SIGTERM, lambda *_: sys.exit(3))
record = {
    "arguments": sys.argv[1:],
    "key": os.environ.get("VLLM_API_KEY"),
    "runner": os.environ["VLLM_USE_V2_MODEL_RUNNER"],
    "architectures": json.loads((model / "config.json").read_text())["architectures"],
}
(here / "new").write_text(json.dumps(record))
(here / "new").rename(here / "record")
print("vLLM talks", flush=True)
signal.pause()
"""


@pytest.fixture(scope="module")
def graft(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("graft") / "toy"
    signals = ("reward", "tone=classes:a,b")
    return random_graft(tiny_llama, folder, signals=signals, hidden=8, heads=2, ffn=16)


def test_vllm_is_started_over_an_export_and_ends_with_us(graft: Path, tmp_path: Path) -> None:
    package = tmp_path / "packages/vllm/entrypoints/openai"
    package.mkdir(parents=True)
    for folder in (package, package.parent, package.parent.parent):
        (folder / "__init__.py").touch()
    (package / "api_server.py").write_text(STAND_IN)
    paths = [str(tmp_path / "packages"), str(Path.cwd()), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "RECORD": str(tmp_path)}
    command = [sys.executable, "-m", "otter_cli", "serve", str(graft), "--engine", "vllm", "--json"]
    options = ["--port", "0", "--model-name", "m", "--drain", "7", "--max-length", "64"]
    more = ["--vllm-args", "--dtype float32 --chat-template 'a b'"]
    process = subprocess.Popen(
        [*command, *options, *more],
        env={**environment, "OTTER_API_KEY": "secret"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    record = _awaited(tmp_path / "record", process)
    export = Path(record["arguments"][1])
    assert export.is_dir() and export.parent.parent == graft.parent
    process.send_signal(signal.SIGTERM)
    out, messages = process.communicate(timeout=120)
    # The signal went on to the server, which it ended.
    assert process.returncode == 0, messages
    assert json.loads(out) == {"engine": "vllm", "model": "m", "exit_code": 0}
    assert "vLLM talks" in messages and "secret" not in " ".join(record["arguments"])
    assert not export.parent.exists() and [path.name for path in graft.parent.iterdir()] == ["toy"]
    assert record["architectures"] == ["OtterLlamaForCausalLM"]
    assert (record["key"], record["runner"]) == ("secret", "0")
    _, _, *rest = record["arguments"]
    port = rest.pop(rest.index("--port") + 1)
    assert int(port) > 0
    assert rest == [
        *["--served-model-name", "m", "--host", "127.0.0.1", "--port"],
        # 20 of the client, and three numbers of signals.
        *["--max-logprobs", "23", "--shutdown-timeout", "7", "--middleware", MIDDLEWARE],
        *["--max-model-len", "64", "--dtype", "float32", "--chat-template", "a b"],
    ]


def _awaited(path: Path, process: subprocess.Popen[str]) -> dict[str, Any]:
    for _ in range(3000):
        if path.exists():
            return json.loads(path.read_text())
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)
    pytest.fail("vLLM was not started")


def test_an_export_is_served_as_it_is(graft: Path, tmp_path: Path) -> None:
    with exported(graft) as first:
        copy = tmp_path / "export"
        first.rename(copy)
    with exported(copy) as again:
        assert again == copy
    assert copy.is_dir()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"engine": "vllm", "max_batch": 2}, "--max-batch is not for --engine vllm"),
        ({"engine": "vllm", "device": "cuda"}, "--device is not for --engine vllm"),
        ({"vllm_args": "--dtype float32"}, "--vllm-args is not for --engine embedded"),
    ],
)
def test_an_option_of_the_other_engine_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OtterError, match=message):
        ServeOptions(folder=Path("graft"), **options)


def test_without_vllm_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("otter_cli.serving.vllm.server.find_spec", lambda name: None)
    with pytest.raises(OtterError, match="needs the package vllm") as error:
        serve_vllm(ServeOptions(folder=Path("graft"), engine="vllm"))
    assert "[vllm]" in error.value.hint
