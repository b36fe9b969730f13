"""Whether vLLM can capture a graft in CUDA graphs as it captures its base, and what a token costs.

vLLM 0.32 captures what torch.compile makes in one graph, cut at the operations of a list
(`CompilationConfig._attention_ops`, and the writing of the KV cache). What is between must neither
wait for the device nor have sizes that depend on values. A graft keeps to that where its graph has
no operation that the base's has not.
"""

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from otter_cli.benchmarks.overhead.measuring import PassShape, base_work, inserted_work
from otter_cli.checkpoint.folder import Checkpoint
from otter_cli.families.shape import base_shape
from otter_cli.graft.manifest import Manifest
from tests.vllm.conftest import ENVIRONMENT

BESIDE = {"OTTER_NATIVE": "0"}
ATTENTION, WRITE = "vllm::unified_attention_with_output", "vllm::unified_kv_cache_update"
# They wait for the device, or have sizes that depend on values.
NOT_CAPTURED = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "item", "_pin_memory")
Trace = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> Trace:
    known: dict[str, dict[str, Any]] = {}

    def run(model: Path, environment: dict[str, str] = BESIDE) -> dict[str, Any]:
        key = f"{model} {environment}"
        if key not in known:
            known[key] = traced(model, environment)
        return known[key]

    def traced(model: Path, environment: dict[str, str]) -> dict[str, Any]:
        answer = tmp_path_factory.mktemp("graph") / "answer.json"
        done = subprocess.run(
            [sys.executable, "-m", "tests.vllm.graph", str(model), str(answer)],
            capture_output=True,
            text=True,
            timeout=800,
            env={**os.environ, **ENVIRONMENT, **environment},
        )
        assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
        return json.loads(answer.read_text())

    return run


@pytest.fixture(scope="module")
def stock(trace: Trace, base: Path) -> dict[str, Any]:
    return trace(base)


@pytest.mark.parametrize("kv", ["base", "own"])
def test_a_graft_is_one_graph_of_operations_that_are_captured(
    kv: str, trace: Trace, stock: dict[str, Any], served: dict[str, Path]
) -> None:
    """Beside the base's layers, as on a GPU."""
    graft, layers = trace(served[kv]), stock["operations"][ATTENTION]
    assert graft["graphs"] == stock["graphs"] == 1
    ours, theirs = graft["operations"], stock["operations"]
    opaque = {name for name in ours if not name.startswith("aten::")}
    assert opaque == {name for name in theirs if not name.startswith("aten::")}
    assert not [name for name in ours if any(word in name for word in NOT_CAPTURED)]
    # One attention more a layer, at which the graph is cut. It writes to no cache but its own.
    assert ATTENTION in graft["attention"] and ours[ATTENTION] == 2 * layers
    assert ours[WRITE] == layers * (2 if kv == "own" else 1)
    added = {name: ours[name] - theirs.get(name, 0) for name in ours}
    print(f"kv {kv}: added in {layers} layers", {n: c for n, c in sorted(added.items()) if c})


def test_on_a_cpu_the_stream_is_one_operation_after_the_base(
    trace: Trace, stock: dict[str, Any], served: dict[str, Path]
) -> None:
    graft = trace(served["base"], {})
    added = Counter(graft["operations"]) - Counter(stock["operations"])
    assert graft["graphs"] == 1 and graft["products"] == stock["products"]
    assert {name: n for name, n in added.items() if not name.startswith("aten::")} == {
        "vllm::otter_layers": 1
    }


def test_the_products_of_a_token_are_those_that_the_formula_counts(
    trace: Trace,
    stock: dict[str, Any],
    base: Path,
    grafts: dict[str, Path],
    served: dict[str, Path],
) -> None:
    """`benchmarks/overhead/measuring.py` counts bytes and operations; this is the engine's graph.
    Attention and the output heads are outside of it."""
    checkpoint, step = Checkpoint.open(base), PassShape(batch=1, tokens=1, context=0, itemsize=4)
    shape = base_shape(checkpoint.config)
    (plan,) = Manifest.read(grafts["own"]).plans(shape)
    weights = sum(rows * columns for rows, columns in stock["products"])
    attention = 4 * shape.layers * shape.heads * shape.head_dim
    head = shape.vocab * shape.hidden
    assert base_work(shape, weights, step).flops == 2 * (weights + head) + attention
    layer_weights = sum(
        tensor.shape[0] * tensor.shape[1]
        for name, tensor in checkpoint.tensors.items()
        if ".layers." in name and len(tensor.shape) == 2
    )
    assert weights == layer_weights
    ours = Counter(map(tuple, trace(served["own"])["products"])) - Counter(
        map(tuple, stock["products"])
    )
    inserted = sum(rows * columns * count for (rows, columns), count in ours.items())
    matrices = sum(slot.count for slot in plan.tensors if slot.role in ("matrix", "output"))
    assert inserted == matrices
    work = inserted_work(plan, step)
    assert work.bytes >= 4 * matrices and work.flops >= 2 * matrices
