"""Every family that the plugin has a class for, on tiny random bases: as stock, and as
transformers."""

from pathlib import Path
from typing import Any

import pytest

from otter_cli.serving.vllm.export import export_vllm
from tests.conftest import TinyCheckpoint
from tests.support.grafts import random_graft
from tests.vllm.conftest import EAGER, SIGNALS, Ask
from tests.vllm.support import (
    ASKED,
    NUMBERS,
    differences,
    random_prompts,
    requests,
    without_signals,
)

# The smallest head that vLLM's CPU attention has; prompts go past the window.
SIZE = {"hidden_size": 64, "head_dim": 32, "max_position_embeddings": 256}
FAMILIES: dict[str, dict[str, Any]] = {
    "mistral": {"sliding_window": 48},
    # vLLM divides its hidden size by its heads, whatever head_dim says.
    "qwen2": {"tied": True, "hidden_size": 128},
    "qwen3": {},
}
SETTINGS = {**EAGER, "max_model_len": 256}
WAYS = ({"temperature": 0.0}, {"temperature": 0.9, "n": 2})
SIGNALS_ASKED = {"extra_args": {"otter_signals": ",".join(ASKED)}}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_says_what_stock_says_and_scores_as_transformers(
    family: str, tiny_checkpoint: TinyCheckpoint, tmp_path: Path, engine: Ask
) -> None:
    base = tiny_checkpoint(family, **{**SIZE, **FAMILIES[family]})
    prompts = random_prompts(97, 20, 200)

    def asked(logprobs: int, **more: Any) -> list[Any]:
        return [requests(prompts, max_tokens=12, logprobs=logprobs, **w, **more) for w in WAYS]

    plain, with_signals = asked(3), asked(3 + NUMBERS, **SIGNALS_ASKED)
    stock = [one["rows"] for one in engine(base, plain, SETTINGS)["passes"]]
    for kv in ("base", "own"):
        sizes = {"hidden": 16, "heads": 2, "ffn": 24, "scale": 0.05, "signals": SIGNALS}
        graft = random_graft(base, tmp_path / kv, kv=kv, **sizes)
        export_vllm(graft, tmp_path / f"served-{kv}")
        answer = engine(tmp_path / f"served-{kv}", [*plain, *with_signals], SETTINGS)
        found = [one["rows"] for one in answer["passes"]]
        assert found[:2] == stock
        assert [[without_signals(row) for row in rows] for rows in found[2:]] == stock
        for rows, wanted in zip(found[2:], with_signals, strict=True):
            gaps = differences(graft, tmp_path / f"served-{kv}", wanted, rows)
            assert len(gaps) > 10 * len(prompts)
            largest = max(one["gap"] for one in gaps)
            print(f"{family}, kv {kv}: {len(gaps)} tokens, largest {largest:.1e}")
            assert largest < 1e-4
