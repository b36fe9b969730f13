"""What a decoded token costs with a graft, by count: bytes read, operations, and calls.

    python -m tests.performance.serving_cost results/serving/cost-by-count.json [EXPORT]

Bytes and operations are those of `benchmarks/overhead/measuring.py`, which `tests/vllm/test_graph.py`
compares with the graph that vLLM compiles. With EXPORT, a folder of `otter export --to vllm`, and in
the environment of `make test-vllm`, an engine runs it, and the calls of torch's operations in
its sampler are counted, which is outside of what vLLM captures in CUDA graphs.
"""  # noqa: E501

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from otter_cli.benchmarks.overhead.measured_models import SHAPES, shape_config
from otter_cli.benchmarks.overhead.measuring import CountedWork, PassShape, base_work, inserted_work
from otter_cli.core.provenance import provenance
from otter_cli.families.shape import BaseShape, base_shape
from otter_cli.graft.config import resolve_config
from otter_cli.graft.plan import Plan
from otter_cli.serving.vllm.rank_layout import RankLayout
from otter_cli.signals.config import parse_signal

CONTEXT, BATCHES = 1024, (1, 4, 32)
FORMS: dict[str, dict[str, Any]] = {
    "a sixteenth of the base's sizes": {"kv": "base"},
    "16 hidden units, 1 head, 16 units": {
        "kv": "base", "hidden": 16, "heads": 1, "kv_heads": 1, "ffn": 16,
    },
    "16 hidden units, no head, 16 units": {
        "kv": "base", "hidden": 16, "heads": 0, "kv_heads": 0, "ffn": 16,
    },
}  # fmt: skip


def layer_weights(shape: BaseShape) -> int:
    """Matrix elements of a decoder whose FFN has a gate."""
    attention = 2 * shape.heads + 2 * shape.kv_heads
    return shape.layers * shape.hidden * (attention * shape.head_dim + 3 * shape.ffn)


def cost(shape: BaseShape, form: dict[str, Any], batch: int) -> dict[str, Any]:
    """Of one token of one sequence, in bfloat16."""
    config = resolve_config(shape, signals=[parse_signal("reward")], **form)
    plan, step = Plan(config, shape), PassShape(batch, 1, CONTEXT, itemsize=2)
    base, inserted = base_work(shape, layer_weights(shape), step), inserted_work(plan, step)
    # Inserted heads are an attention operation of their own, which reads its keys once more: those
    # of its own key/value heads, or of all where zero heads fill up, as on a GPU.
    places, read = len(RankLayout(config, shape).all_heads), shape.kv_heads if config.heads else 0
    per_head = 4 * len(config.layers) * shape.head_dim
    filled = CountedWork(
        inserted.flops + per_head * (places - config.heads) * step.pairs,
        inserted.bytes + per_head * read * step.cached,
    )
    sliced = CountedWork(inserted.flops, inserted.bytes + per_head * config.kv_heads * step.cached)
    head = shape.hidden + config.hidden
    parameters = layer_weights(shape) + shape.vocab * shape.hidden
    return {
        "inserted share of parameters": plan.parameters / parameters,
        "base": per_token(base, batch),
        "stream and signal": per_token(sliced, batch),
        "stream and signal, with zero heads": per_token(filled, batch),
        "of them the signal's head": {"bytes": 4 * head / batch, "operations": 2 * head},
        "over the base": ratio(sliced, base),
        "over the base, with zero heads": ratio(filled, base),
    }


def per_token(work: CountedWork, batch: int) -> dict[str, float]:
    return {"bytes": work.bytes / batch, "operations": work.flops / batch}


def ratio(work: CountedWork, base: CountedWork) -> dict[str, float]:
    return {"bytes": 1 + work.bytes / base.bytes, "operations": 1 + work.flops / base.flops}


def sampler_calls(export: str) -> dict[str, dict[str, int]]:
    """Calls of torch's operations in the sampler, for a step of one sequence."""
    os.environ.update(
        VLLM_ENABLE_V1_MULTIPROCESSING="0", VLLM_CPU_KVCACHE_SPACE="1", HF_HUB_OFFLINE="1"
    )
    from torch.utils._python_dispatch import TorchDispatchMode
    from vllm import LLM, SamplingParams, TokensPrompt

    class Count(TorchDispatchMode):
        def __init__(self) -> None:
            super().__init__()
            self.calls = Counter[str]()

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None):
            self.calls[func.name()] += 1
            return func(*args, **(kwargs or {}))

    llm = LLM(
        export,
        dtype="float32",
        max_model_len=512,
        enforce_eager=True,
        distributed_executor_backend="uni",
    )
    executor = llm.llm_engine.engine_core.engine_core.model_executor
    sampler = executor.driver_worker.worker.model_runner.sampler
    stock, last = sampler.forward, Counter[str]()

    def counting(*args: Any, **named: Any) -> Any:
        nonlocal last
        with Count() as count:
            out = stock(*args, **named)
        last = count.calls
        return out

    sampler.forward = counting
    signals = {"otter_signals": "reward", "otter_logprobs": False}
    ways: dict[str, dict[str, Any]] = {
        "no signal": {},
        "stock's own log-probability of the chosen token": {"logprobs": 0},
        "reward": {"logprobs": 1, "extra_args": signals},
        "reward, and a bound that ends the answer": {
            "logprobs": 1,
            "extra_args": {**signals, "otter_stop_when": "reward>1e9"},
        },
    }
    found = {}
    for name, way in ways.items():
        sampling = SamplingParams(temperature=0.0, max_tokens=4, **way)
        llm.generate([TokensPrompt(prompt_token_ids=[5, 6, 7])], sampling, use_tqdm=False)
        found[name] = {"calls": sum(last.values()), **dict(last.most_common())}
    return found


def main(out: str, export: str | None = None) -> None:
    shapes = {n: base_shape(shape_config(n).to_dict()) for n in SHAPES if n != "tiny"}
    costs = {
        name: {
            form: {f"batch {batch}": cost(shape, sizes, batch) for batch in BATCHES}
            for form, sizes in FORMS.items()
        }
        for name, shape in shapes.items()
    }
    record = {
        "context": CONTEXT,
        "a decoded token": costs,
        "calls in the sampler, a step of one sequence": sampler_calls(export) if export else None,
        "provenance": provenance(["tests.performance.serving_cost"]),
    }
    Path(out).write_text(json.dumps(record, indent=1) + "\n")
    for name, forms in costs.items():
        for form, batches in forms.items():
            for batch, found in batches.items():
                share = found["inserted share of parameters"]
                sliced, filled = found["over the base"], found["over the base, with zero heads"]
                print(
                    f"{name}, {form}, {batch}: {share:.2%} inserted, bytes x {sliced['bytes']:.4f} "
                    f"({filled['bytes']:.4f} with zero heads), operations x "
                    f"{sliced['operations']:.4f} ({filled['operations']:.4f})"
                )
    for name, calls in (record["calls in the sampler, a step of one sequence"] or {}).items():
        print(f"{name}: {calls['calls']} calls")


if __name__ == "__main__":
    main(*sys.argv[1:])
