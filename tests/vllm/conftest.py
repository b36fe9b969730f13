"""Engines in processes of their own, each started once a session for each way of running it."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from tests.support.grafts import random_graft

ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
    "OMP_NUM_THREADS": "1",
}
# On a CPU stock vLLM 0.32 stops at a request that has a seed and a prompt in chunks.
CHUNKED = {"enable_chunked_prefill": True, "max_num_batched_tokens": 64, "max_num_seqs": 8}
INSIDE = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
ENGINE = {"dtype": "float32", "max_model_len": 512, "max_num_seqs": 16, "seed": 0}
EAGER = {**ENGINE, "enforce_eager": True, "distributed_executor_backend": "uni"}
SIGNALS = ("reward", "toxicity", "tone=classes:a,b", "value=vocabulary:8", "future:2")
Ask = Callable[..., dict[str, Any]]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.vllm)
            if find_spec("vllm") is None:
                item.add_marker(pytest.mark.skip("vLLM is not installed here: make test-vllm"))


@pytest.fixture(scope="session")
def base(shared: Path) -> Path:
    return shared / "models/chat-7m"


@pytest.fixture(scope="session")
def grafts(base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """By `kv`; every inserted tensor random, so that nothing of the stream is idle."""
    folder = tmp_path_factory.mktemp("grafts")
    sizes = {"hidden": 32, "ffn": 88, "scale": 0.05, "signals": SIGNALS}
    return {
        "base": random_graft(base, folder / "base", kv="base", heads=4, **sizes),
        "own": random_graft(base, folder / "own", kv="own", heads=2, **sizes),
        # The two in the middle of the base's four key/value heads.
        "uneven": random_graft(
            base, folder / "uneven", kv="base", heads=4, kv_heads=2, kv_start=1, **sizes
        ),
        "headless": random_graft(
            base, folder / "headless", kv="base", heads=0, kv_heads=0, **sizes
        ),
    }


@pytest.fixture(scope="session")
def served(grafts: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    from otter_cli.serving.vllm.export import export_vllm

    folder = tmp_path_factory.mktemp("served")
    for name, graft in grafts.items():
        export_vllm(graft, folder / name)
    return {name: folder / name for name in grafts}


@pytest.fixture(scope="session")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Ask:
    """`engine(folder, passes, settings, environment, states)`: its answer, with the engine's own
    words where it dies."""

    def run(
        model: Path,
        passes: list[list[dict[str, Any]]],
        settings: dict[str, Any] = EAGER,
        environment: dict[str, str] = INSIDE,
        states: list[list[float]] | None = None,
    ) -> dict[str, Any]:
        folder = tmp_path_factory.mktemp("engine")
        spec = {
            "model": str(model),
            "engine": settings,
            "environment": {**ENVIRONMENT, **environment},
            "passes": passes,
            "states": states,
        }
        (folder / "spec.json").write_text(json.dumps(spec))
        command = [sys.executable, "-m", "tests.vllm.engine"]
        done = subprocess.run(
            [*command, str(folder / "spec.json"), str(folder / "answer.json")],
            capture_output=True,
            text=True,
            timeout=800,
            env={**os.environ, **ENVIRONMENT, **environment},
        )
        assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
        return json.loads((folder / "answer.json").read_text())

    return run
