"""A graft served as a reward model: scores of texts, the same as beside generated tokens."""

import json
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import torch

from otter_cli.serving.vllm.client import SignalReader
from tests.vllm.serving import serve
from tests.vllm.support import random_prompts, reference

NAMES = ("reward", "toxicity", "tone")


def post(url: str, **body: Any) -> list[dict[str, Any]]:
    request = urllib.request.Request(
        url,
        json.dumps({"model": "graft", **body}).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=600) as answer:
        return json.load(answer)["data"]


@torch.no_grad()
def wanted(folder: Path, prompt: list[int]) -> dict[str, torch.Tensor]:
    found = reference(folder)(torch.tensor([prompt]), signals=NAMES).signals
    scores = {name: found[name][0] for name in NAMES}
    return {n: s if n == "reward" else s.sigmoid() for n, s in scores.items()}


@pytest.mark.parametrize("task", ["classify", "token_classify"])
def test_texts_are_scored_at_their_last_token_or_at_each(
    task: str, served: dict[str, Path], grafts: dict[str, Path], tmp_path: Path
) -> None:
    reader = SignalReader.from_folder(served["base"])
    prompts = random_prompts(4096, 10, 200)
    more = ["--runner", "pooling", "--pooler-config.task", task]
    with serve(served["base"], tmp_path / "log", *more) as address:
        if task == "classify":
            found = [[one["probs"]] for one in post(f"{address}/classify", input=prompts)]
        else:
            found = [one["data"] for one in post(f"{address}/pooling", input=prompts)]
    for prompt, rows in zip(prompts, found, strict=True):
        expected = wanted(grafts["base"], prompt)
        assert len(rows) == (1 if task == "classify" else len(prompt))
        for place, scores in enumerate(rows, len(prompt) - len(rows)):
            read = reader.of_text(scores)
            assert read.keys() == expected.keys()
            for name, value in read.items():
                want = expected[name][place].flatten().tolist()
                assert torch.tensor(value).flatten().tolist() == pytest.approx(want, abs=1e-4)
