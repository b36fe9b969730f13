"""The graph that vLLM compiles of a model, traced in a process of its own:
`python -m tests.vllm.graph MODEL ANSWER.json`.

vLLM compiles a model by `torch.compile(fullgraph=True)`, cuts the graph at its attention
operations, and captures what is between in CUDA graphs. The trace is that of a step of six tokens,
on a CPU; the number of tokens is a symbol in it.
"""

import json
import os
import sys
from collections import Counter
from pathlib import Path
from typing import Any

ROWS = 6
EAGER = {
    "dtype": "float32", "max_model_len": 512, "max_num_seqs": 16, "enforce_eager": True,
    "distributed_executor_backend": "uni",
}  # fmt: skip


def main(model: str, answer: str) -> None:
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    from vllm import LLM
    from vllm.config import CompilationConfig

    llm = LLM(model, **EAGER)
    executor = llm.llm_engine.engine_core.engine_core.model_executor
    whole, operations = trace(executor.driver_worker.worker.model_runner)
    Path(answer).write_text(
        json.dumps(
            {
                "graphs": len(whole),
                "operations": counted(operations),
                "products": [product for node in operations if (product := product_of(node))],
                "attention": sorted(CompilationConfig._attention_ops),
            }
        )
    )


def trace(runner: Any) -> tuple[list[Any], list[Any]]:
    """The graphs that dynamo makes, and the nodes of the first one in aten's operations."""
    import torch
    from torch._dynamo.backends.common import aot_autograd
    from vllm.forward_context import set_forward_context

    whole: list[Any] = []
    lowered: list[Any] = []

    def keep(graph: Any, _: Any) -> Any:
        lowered.append(graph)
        return graph.forward

    def backend(graph: Any, inputs: Any) -> Any:
        whole.append(graph)
        return aot_autograd(fw_compiler=keep)(graph, inputs)

    tokens, positions = torch.arange(ROWS, dtype=torch.int32), torch.arange(ROWS)
    for each in tokens, positions:
        torch._dynamo.mark_dynamic(each, 0)
    compiled = torch.compile(runner.model.model.forward, fullgraph=True, backend=backend)
    # Without the metadata of a batch, as in the run before a capture.
    with torch.inference_mode(), set_forward_context(None, runner.vllm_config, num_tokens=ROWS):
        compiled(tokens, positions, None, None)
    return whole, [node for node in lowered[0].graph.nodes if node.op == "call_function"]


def counted(nodes: list[Any]) -> dict[str, int]:
    """How often each operation is called. One that writes to its arguments is wrapped by the
    compiler; it is named for itself."""
    import torch

    names = []
    for node in nodes:
        wrapped = "auto_functionalized" in str(node.target)
        target = node.args[0] if wrapped else node.target
        if isinstance(target, torch._ops.OpOverload):
            names.append(target.name())
    return dict(Counter(names))


def product_of(node: Any) -> tuple[int, int] | None:
    """Rows and columns of the weight that a node multiplies with; None for other operations."""
    target = str(node.args[0] if "auto_functionalized" in str(node.target) else node.target)
    if target == "_C.onednn_mm.default":  # the base's linear layers; the weight is in a handle
        inputs, outputs = node.kwargs["a"], node.kwargs["_all_bases"][0]
    elif target in ("aten.mm.default", "aten.addmm.default"):
        inputs, outputs = node.args[-2], node
    else:
        return None
    return int(inputs.meta["val"].shape[-1]), int(outputs.meta["val"].shape[-1])


if __name__ == "__main__":
    main(*sys.argv[1:])
