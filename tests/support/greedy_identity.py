"""Compares drafted with plain greedy text over a file of prompts: `make identity`."""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer

from otter_cli.data.prompts import read_prompts
from otter_cli.decoding.generate import generate
from otter_cli.decoding.sampling import Sampling
from otter_cli.decoding.speculative.drafters import DraftModel, FutureDrafter, PromptLookup
from otter_cli.decoding.speculative.drafts import TreeShape
from otter_cli.model.otter import OtterForCausalLM
from tests.support.grafts import random_graft

NEW, BATCH = 64, 16


def parted(model: Any, prompt: list[int], plain: list[int], drafted: list[int]) -> dict[str, Any]:
    """Where two texts diverge, the token of each there, and the gap between the two best logits."""
    pairs = enumerate(zip(plain, drafted, strict=False))
    at = next((i for i, (one, other) in pairs if one != other), min(len(plain), len(drafted)))
    with torch.no_grad():
        logits = model.base(torch.tensor([prompt + plain[:at]])).logits[0, -1]
    top = logits.topk(2)
    gap = float(top.values[0] - top.values[1])
    return {"position": at, "gap": gap, "plain": plain[at:][:8], "drafted": drafted[at:][:8]}


def compare(model: Any, encoded: list[list[int]], drafter: Any) -> dict[str, Any]:
    different, ties, passes, tokens = [], [], 0, 0
    for start in range(0, len(encoded), BATCH):
        part = encoded[start : start + BATCH]
        plain = generate(model, part, Sampling(NEW))
        drafted = generate(model, part, Sampling(NEW), drafter=drafter)
        passes += drafted[0].counters.base_passes
        for number, (one, other) in enumerate(zip(plain, drafted, strict=True)):
            tokens += len(one.tokens)
            ties += [tie.gap for tie in other.near_ties]
            if one.tokens != other.tokens:
                found = parted(model, part[number], one.tokens, other.tokens)
                different.append({"prompt": start + number, **found})
    return {
        "prompts": len(encoded),
        "identical": len(encoded) - len(different),
        "tokens": tokens,
        "near_ties": len(ties),
        "smallest_gaps": sorted(ties)[:5],
        "base_passes_in_batches": passes,
        "different": different,
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    for name in ("base", "prompts", "to"):
        parser.add_argument(name, type=Path)
    asked = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(asked.base)
    with tempfile.TemporaryDirectory() as temporary:
        out = Path(temporary) / "graft"
        folder = random_graft(asked.base, out, hidden=8, heads=1, ffn=8, signals=("future:3",))
        model = OtterForCausalLM.from_pretrained(folder)
    every = [tokenizer(prompt.text)["input_ids"] for prompt in read_prompts(asked.prompts)]
    room = model.shape.max_positions - NEW
    encoded = sorted((ids for ids in every if len(ids) <= room), key=len)
    drafters = {
        "prompt lookup": PromptLookup(),
        "future heads, a random tree 3,2,1": FutureDrafter(tree=TreeShape.of_widths([3, 2, 1])),
        "the base as its own draft model, 4 tokens": DraftModel(model.base, 4),
    }
    found = {
        "base": asked.base.name,
        "file": asked.prompts.name,
        "new_tokens": NEW,
        "batch": BATCH,
        "prompts_that_do_not_fit": len(every) - len(encoded),
        "drafters": {name: compare(model, encoded, one) for name, one in drafters.items()},
    }
    asked.to.parent.mkdir(parents=True, exist_ok=True)
    asked.to.write_text(json.dumps(found, indent=2) + "\n")
    print(asked.to.read_text())


if __name__ == "__main__":
    main()
