"""An engine's signals against transformers', in each way of running it; and guidance in it."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from tests.vllm.conftest import CHUNKED, EAGER, ENGINE, INSIDE, Ask
from tests.vllm.engine import ONE_BY_ONE, WHOLE_CACHE
from tests.vllm.support import ASKED, NUMBERS, differences, mixed_prompts, reference, requests

TOLERANCE = 1e-4
WITH_SIGNALS = {"logprobs": NUMBERS, "extra_args": {"otter_signals": ",".join(ASKED)}}
BESIDE = {**INSIDE, "OTTER_NATIVE": "0"}  # the base's layers, by torch's operations
WHOLE = {"enable_chunked_prefill": False, "enable_prefix_caching": False}
FEW_BLOCKS = {"num_gpu_blocks_override": 10, "disable_log_stats": False}
WAYS: dict[str, tuple[str, dict[str, Any], dict[str, str]]] = {
    "in-process": ("base", EAGER, INSIDE),
    "own-keys-and-values": ("own", EAGER, INSIDE),
    "few-kv-heads": ("uneven", EAGER, INSIDE),
    "without-heads": ("headless", EAGER, INSIDE),
    # Too few blocks for all: some sequences have to make room, and come again.
    "preempted": ("base", {**EAGER, **FEW_BLOCKS}, INSIDE),
    "layer-by-layer": ("base", EAGER, {**INSIDE, ONE_BY_ONE: "1"}),
    "beside-the-base": ("base", EAGER, BESIDE),
    "beside-few-kv-heads": ("uneven", EAGER, BESIDE),
    "beside-zero-heads": ("uneven", EAGER, {**BESIDE, WHOLE_CACHE: "1"}),
    "chunked-prefill": ("base", {**EAGER, **CHUNKED}, INSIDE),
    "beside-and-chunked": ("base", {**EAGER, **CHUNKED}, BESIDE),
    "own-and-chunked": ("own", {**EAGER, **CHUNKED}, INSIDE),
    "prompts-whole-and-uncached": ("base", {**EAGER, **WHOLE}, INSIDE),
    "compiled": ("base", {**ENGINE, "distributed_executor_backend": "uni"}, INSIDE),
    "compiled-beside": ("base", {**ENGINE, "distributed_executor_backend": "uni"}, BESIDE),
    "separate-processes": ("base", {**ENGINE, "enforce_eager": True}, {}),
}
GROUPS = {"layer-by-layer": 8}  # of the base's layers, where they are not one
for ranks, graft in ((2, "base"), (2, "own"), (4, "base"), (4, "uneven"), (8, "base"), (8, "own")):
    WAYS[f"{ranks}-ranks-{graft}"] = (
        graft,
        {**ENGINE, "enforce_eager": True, "tensor_parallel_size": ranks},
        {"VLLM_CPU_OMP_THREADS_BIND": "|".join(str(rank % 2) for rank in range(ranks))},
    )


@pytest.fixture(scope="module")
def prompts(shared: Path, base: Path) -> list[list[int]]:
    return mixed_prompts(shared, AutoTokenizer.from_pretrained(base), 24)


@pytest.mark.parametrize("way", WAYS)
def test_signals_are_those_of_transformers(
    way: str,
    grafts: dict[str, Path],
    served: dict[str, Path],
    prompts: list[list[int]],
    engine: Ask,
) -> None:
    graft, settings, environment = WAYS[way]
    temperature = 0.0 if CHUNKED.items() <= settings.items() else 0.8
    asked = requests(prompts, max_tokens=24, temperature=temperature, **WITH_SIGNALS)
    answer = engine(served[graft], [asked], settings, environment)
    if settings.get("distributed_executor_backend") == "uni":
        waits = graft != "own" and "OTTER_NATIVE" not in environment
        assert answer["groups"] == (GROUPS.get(way, 1) if waits else 0)
    if way == "preempted":
        assert answer["preempted"] > 0
    found = differences(grafts[graft], served[graft], asked, answer["passes"][0]["rows"])
    assert len(found) > 10 * len(prompts)
    largest = max(one["gap"] for one in found)
    late = max(one["gap"] for one in found if one["position"] > 150)
    print(f"{way}: {len(found)} tokens, largest {largest:.1e}, past 150 tokens {late:.1e}")
    assert largest < TOLERANCE


def test_guidance_takes_the_best_by_logit_and_score(
    grafts: dict[str, Path], served: dict[str, Path], prompts: list[list[int]], engine: Ask
) -> None:
    """Greedy, beside rows that are plain and rows whose gate is closed."""
    strengths = [0.0, 3.0, -3.0]
    asked = requests(prompts, max_tokens=8, temperature=0.0)
    for i, request in enumerate(asked):
        guide = {"otter_guide": "value", "otter_strength": strengths[i % 3]}
        gate = {"otter_entropy_above": 50.0} if i % 6 == 1 else {}
        request["sampling"]["extra_args"] = {**guide, **gate}
    rows = engine(served["base"], [asked])["passes"][0]["rows"]
    moved = 0
    for i, (request, row) in enumerate(zip(asked, rows, strict=True)):
        strength = 0.0 if i % 6 == 1 else strengths[i % 3]
        tokens = row[0]["tokens"]
        best, plain = _best(grafts["base"], request["prompt"], tokens, strength)
        assert tokens == best
        moved += best != plain
    assert moved > 4


@torch.no_grad()
def _best(
    folder: Path, prompt: list[int], tokens: list[int], strength: float
) -> tuple[list[int], list[int]]:
    """By transformers, after the same text: the best of the ten by logit, guided and plain."""
    out = reference(folder)(torch.tensor([prompt + tokens]), signals=("value",))
    rows = slice(len(prompt) - 1, len(prompt) + len(tokens) - 1)
    top = out.logits[0, rows].topk(10, -1)
    scores = out.signals["value"][0, rows].gather(-1, top.indices)
    best = (top.values + strength * scores).argmax(-1, keepdim=True)
    return top.indices.gather(-1, best)[:, 0].tolist(), top.indices[:, 0].tolist()
