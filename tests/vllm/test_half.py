"""Half precision, vLLM's default: other kernels multiply, and the text is stock vLLM's."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from otter_cli.serving.vllm.client import SignalReader
from tests.vllm.conftest import CHUNKED, EAGER, ENGINE, Ask
from tests.vllm.support import NUMBERS, Answer, expected, mixed_prompts, requests, without_signals

COMPILED = {**ENGINE, "distributed_executor_backend": "uni"}
# A prompt of which the cache has a part is cut elsewhere, and rounded otherwise.
CUT = {**EAGER, **CHUNKED, "enable_prefix_caching": False}
CASES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "bfloat16": ("base", "bfloat16", COMPILED),
    "few-heads-in-chunks": ("uneven", "bfloat16", CUT),
    "float16": ("base", "float16", EAGER),
    "float16-without-heads": ("headless", "float16", EAGER),
}
NAMES = {"otter_signals": "reward,toxicity,tone,value"}


@pytest.mark.parametrize("case", CASES)
def test_tokens_are_stocks_and_signals_as_far_from_single_precision_as_transformers(
    case: str,
    base: Path,
    grafts: dict[str, Path],
    served: dict[str, Path],
    shared: Path,
    engine: Ask,
) -> None:
    graft, dtype, settings = CASES[case]
    settings = {**settings, "dtype": dtype}
    prompts = mixed_prompts(shared, AutoTokenizer.from_pretrained(base), 24)
    sampling: dict[str, Any] = {"max_tokens": 16, "temperature": 0.0}
    plain = requests(prompts, logprobs=0, **sampling)
    asked = requests(prompts, logprobs=NUMBERS, extra_args=NAMES, **sampling)
    (stock,) = engine(base, [plain], settings)["passes"]
    answers = engine(served[graft], [asked, plain], settings)
    mine, quiet = answers["passes"]
    assert quiet["rows"] == stock["rows"]
    assert [without_signals(row) for row in mine["rows"]] == stock["rows"]
    reader, ours, theirs = SignalReader.from_folder(served[graft]), [], []
    for prompt, (choice,) in zip(prompts, mine["rows"], strict=True):
        answer = Answer(choice)
        read = reader.read(answer)
        wanted = expected(grafts[graft], prompt, answer.tokens)
        rounded = expected(grafts[graft], prompt, answer.tokens, dtype)
        for name, exact in wanted.items():
            ours.append((torch.tensor(read[name]).reshape(exact.shape) - exact).abs().flatten())
            theirs.append((rounded[name] - exact).abs().flatten())
    (mean, most), (usual, largest) = (
        (gaps.mean().item(), gaps.max().item()) for gaps in map(torch.cat, (ours, theirs))
    )
    how = "behind the base" if answers["groups"] else "beside it"
    print(
        f"{case}, {how}: on average {mean:.1e} from single precision, at most {most:.1e}; "
        f"transformers {usual:.1e} and {largest:.1e}"
    )
    assert mean < 2 * usual
    assert most < 3 * largest
