"""One engine in a process of its own: `python -m tests.vllm.engine SPEC.json ANSWER.json`.

SPEC: model, engine (keywords of LLM), environment, passes: each a list of requests
{prompt, sampling}, which run as one batch; and states, for which the drafter's logits are wanted.
"""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

# For engines inside this process. Zero heads fill up, as on GPUs:
WHOLE_CACHE = "TEST_WHOLE_CACHE"
# A deferred stream runs after each layer of the base:
ONE_BY_ONE = "TEST_ONE_BY_ONE"


def main(spec_path: str, answer_path: str) -> None:
    spec = json.loads(Path(spec_path).read_text())
    os.environ.update(spec["environment"])
    from vllm import LLM

    started, refused = time.perf_counter(), list[Any]()
    if os.environ.get(WHOLE_CACHE):
        from otter_cli.serving.vllm import stream

        # None, as for a backend whose cache cannot be sliced.
        stream.slice_backend = lambda *asked: refused.append(asked)
    if os.environ.get(ONE_BY_ONE):
        from otter_cli.serving.vllm.cpu import deferred_layers

        deferred_layers.MAX_HELD_BYTES = 1
    llm = LLM(spec["model"], **spec["engine"])
    assert bool(refused) == bool(os.environ.get(WHOLE_CACHE))
    answer: dict[str, Any] = {"start_seconds": time.perf_counter() - started, "passes": []}
    for requests in spec["passes"]:
        answer["passes"].append(run(llm, requests))
    if spec["engine"].get("distributed_executor_backend") == "uni":
        answer["groups"] = groups(llm)
    if not spec["engine"].get("disable_log_stats", True):
        counts = {m.name: m.value for m in llm.get_metrics() if hasattr(m, "value")}
        answer["preempted"] = counts["vllm:num_preemptions"]
    if states := spec.get("states"):
        answer["drafts"] = drafts(llm, states)
    Path(answer_path).write_text(json.dumps(answer))


def model_of(llm: Any) -> Any:
    """The model of an engine inside this process."""
    executor = llm.llm_engine.engine_core.engine_core.model_executor
    return executor.driver_worker.worker.model_runner.model


def groups(llm: Any) -> int:
    """In how many groups of layers deferred streams run; 0 where they run beside the base's."""
    streams = getattr(getattr(model_of(llm), "model", None), "streams", ())
    return sum(len(one.deferred.groups) for one in streams if one.deferred is not None)


def run(llm: Any, requests: list[dict[str, Any]]) -> dict[str, Any]:
    from vllm import SamplingParams, TokensPrompt

    prompts = [TokensPrompt(prompt_token_ids=r["prompt"]) for r in requests]
    sampling = [SamplingParams(**r["sampling"]) for r in requests]
    started = time.perf_counter()
    outputs = llm.generate(prompts, sampling, use_tqdm=False)
    seconds = time.perf_counter() - started
    return {"seconds": seconds, "rows": [[row(c) for c in out.outputs] for out in outputs]}


def drafts(llm: Any, states: list[list[float]]) -> dict[str, Any]:
    """What each of the drafter's heads says of the states, [states, n, vocab], and how many drafts
    of the passes were accepted."""
    import torch

    executor = llm.llm_engine.engine_core.engine_core.model_executor
    drafter = executor.driver_worker.worker.model_runner.drafter.model
    with torch.inference_mode():
        logits = drafter.compute_logits(drafter(torch.tensor(states)))
    counts = {m.name: m.value for m in llm.get_metrics() if hasattr(m, "value")}
    return {
        "logits": torch.stack(logits, 1).tolist(),
        "accepted": counts["vllm:spec_decode_num_accepted_tokens"],
    }


def row(choice: Any) -> dict[str, Any]:
    found = choice.logprobs
    tables = found and [[[i, one.logprob] for i, one in step.items()] for step in found]
    return {"tokens": list(choice.token_ids), "logprobs": tables}


if __name__ == "__main__":
    main(*sys.argv[1:])
