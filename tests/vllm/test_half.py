"""bfloat16, which vLLM serves by itself: other kernels multiply, and stock's say is the same."""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer

from otter_cli.serving.vllm.client import SignalReader
from tests.vllm.conftest import ENGINE, Ask
from tests.vllm.support import (
    NUMBERS,
    Answer,
    expected,
    mixed_prompts,
    requests,
    without_signals,
)

SETTINGS = {**ENGINE, "dtype": "bfloat16", "distributed_executor_backend": "uni"}
NAMES = {"otter_signals": "reward,toxicity,tone,value"}


def test_tokens_are_stocks_and_signals_as_far_from_single_precision_as_transformers(
    base: Path,
    grafts: dict[str, Path],
    served: dict[str, Path],
    shared: Path,
    engine: Ask,
) -> None:
    prompts = mixed_prompts(shared, AutoTokenizer.from_pretrained(base), 24)
    sampling: dict[str, Any] = {"max_tokens": 16, "temperature": 0.0}
    plain = requests(prompts, logprobs=0, **sampling)
    asked = requests(prompts, logprobs=NUMBERS, extra_args=NAMES, **sampling)
    (stock,) = engine(base, [plain], SETTINGS)["passes"]
    answers = engine(served["base"], [asked, plain], SETTINGS)
    mine, quiet = answers["passes"]
    assert quiet["rows"] == stock["rows"]
    assert [without_signals(row) for row in mine["rows"]] == stock["rows"]
    reader, ours, theirs = SignalReader.from_folder(served["base"]), [], []
    for prompt, (choice,) in zip(prompts, mine["rows"], strict=True):
        answer = Answer(choice)
        read = reader.read(answer)
        wanted = expected(grafts["base"], prompt, answer.tokens)
        rounded = expected(grafts["base"], prompt, answer.tokens, "bfloat16")
        for name, exact in wanted.items():
            ours.append((torch.tensor(read[name]).reshape(exact.shape) - exact).abs().flatten())
            theirs.append((rounded[name] - exact).abs().flatten())
    mean, usual = (torch.cat(gaps).mean().item() for gaps in (ours, theirs))
    how = "behind the base" if answers["groups"] else "beside it"
    print(f"bfloat16, {how}: on average {mean:.1e} from single precision; transformers {usual:.1e}")
    assert mean < 2 * usual
