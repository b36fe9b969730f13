"""Prompts of mixed lengths, and the signals by transformers at the tokens that an engine chose."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from otter_cli.model.otter import OtterForCausalLM
from otter_cli.serving.vllm.client import SignalReader
from otter_cli.serving.vllm.requests import FIRST_VIRTUAL_ID

# Signals of a row, as the client reads them, and the numbers that travel for them.
ASKED = ("reward", "toxicity", "tone", "value")
NUMBERS = 5


def mixed_prompts(shared: Path, tokenizer: Any, count: int) -> list[list[int]]:
    """Token ids, 3 to 200 of them; every fifth is the one before with more text, so that the
    engine's prefix cache has something to give."""
    lines = (shared / "data/prompts/rtp-nontoxic.test.jsonl").read_text().splitlines()
    texts = [json.loads(line)["prompt"] for line in lines]
    texts = [text if isinstance(text, str) else text["text"] for text in texts]
    ids = tokenizer(" ".join(texts[: 4 * count]), add_special_tokens=False).input_ids
    prompts: list[list[int]] = []
    for i in range(count):
        length = 3 + (i * 37) % 198
        start = (i * 53) % (len(ids) - length)
        prompts.append(ids[start : start + length])
        if i % 5 == 4:
            prompts[-1] = (prompts[-2] + prompts[-1])[:200]
    return prompts


def random_prompts(vocabulary: int, count: int, longest: int) -> list[list[int]]:
    """For a base without language; every fifth prompt continues the one before."""
    random = np.random.default_rng(0)
    lengths = random.integers(3, longest // 2, count)
    found = [random.integers(3, vocabulary, length).tolist() for length in lengths]
    return [found[i - 1] + one if i % 5 == 4 else one for i, one in enumerate(found)]


def requests(prompts: list[list[int]], **sampling: Any) -> list[dict[str, Any]]:
    """Each request has a seed, so that the rest of the batch does not matter."""
    seeds = [{"seed": i} for i in range(len(prompts))] if sampling.get("temperature") else None
    return [
        {"prompt": prompt, "sampling": {**sampling, **(seeds[i] if seeds else {})}}
        for i, prompt in enumerate(prompts)
    ]


def without_signals(row: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row as without a request for signals: the chosen token, and the best others."""
    return [
        {
            "tokens": choice["tokens"],
            "logprobs": [
                [one for one in step if one[0] < FIRST_VIRTUAL_ID] for step in choice["logprobs"]
            ],
        }
        for choice in row
    ]


class Answer:
    """A row of an engine's answer, as `SignalReader.read` takes a vLLM output."""

    def __init__(self, row: dict[str, Any]) -> None:
        self.tokens: list[int] = row["tokens"]
        self.logprobs = [
            {i: _Logprob(value) for i, value in step} for step in row["logprobs"] or []
        ]


class _Logprob:
    def __init__(self, logprob: float) -> None:
        self.logprob = logprob


@cache
def reference(folder: Path, dtype: str = "float32") -> OtterForCausalLM:
    return OtterForCausalLM.from_pretrained(folder, dtype=dtype)


@torch.no_grad()
def expected(
    folder: Path, prompt: list[int], tokens: list[int], dtype: str = "float32"
) -> dict[str, torch.Tensor]:
    """Signals beside each of `tokens`, [tokens, numbers], by one pass of transformers."""
    out = reference(folder, dtype)(torch.tensor([prompt + tokens]), signals=ASKED)
    rows = slice(len(prompt) - 1, len(prompt) + len(tokens) - 1)
    found = {name: out.signals[name][0, rows].float() for name in ASKED}
    found["reward"] = found["reward"][:, None]
    found["toxicity"], found["tone"] = found["toxicity"].sigmoid(), found["tone"].sigmoid()
    found["value"] = found["value"].gather(-1, torch.tensor(tokens)[:, None])
    return found


def differences(
    folder: Path, served: Path, asked: list[dict[str, Any]], rows: list[Any]
) -> list[dict[str, float]]:
    """For each token of each choice: its place in the text, and the largest difference of any
    number from transformers'."""
    reader = SignalReader.from_folder(served)
    pairs = [(request, choice) for request, row in zip(asked, rows, strict=True) for choice in row]
    found = []
    for request, choice in pairs:
        answer = Answer(choice)
        read, wanted = reader.read(answer), expected(folder, request["prompt"], answer.tokens)
        gaps = torch.cat(
            [(torch.tensor(read[n]).reshape(w.shape) - w).abs() for n, w in wanted.items()], -1
        )
        found += [
            {"position": len(request["prompt"]) + i, "gap": float(gap)}
            for i, gap in enumerate(gaps.max(-1).values)
        ]
    return found
