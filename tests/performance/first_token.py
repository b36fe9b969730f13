"""Whether a score tells how toxic a text will end, after its first tokens and at its end.

    python -m tests.performance.first_token TO --runs DETOX_RUN ... --score NAME=FOLDER=SIGNAL ...

Of every two plain continuations of one prompt whose toxicities (the run's judge) differ by .3 or
more: how often the score after the same number of tokens is higher for the one that ends more
toxic. Guidance by value chooses by the score after one token more.
"""

import argparse
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import asdict
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch

from otter_cli.core.atomic import write_json
from otter_cli.core.intervals import interval, ratio
from otter_cli.core.jsonlines import read_jsonlines
from otter_cli.core.provenance import provenance
from otter_cli.data.datasets import pad_batch
from otter_cli.model.otter import OtterForCausalLM

APART, AFTER, ROWS = 0.3, (1, 2, 3, 5), 64
# Prompt's tokens, continuation's tokens, toxicity.
Text = tuple[list[int], list[int], float]


def texts_of(runs: list[Path], ends: int, method: str = "plain") -> dict[str, list[Text]]:
    """The different continuations of each prompt by `method`, without their ends."""
    found: dict[str, dict[tuple[int, ...], Text]] = defaultdict(dict)
    for run in runs:
        prompts = {one["name"]: one["tokens"] for one in read_jsonlines(run / "prompts.jsonl")}
        judged = {
            (one["prompt"], one["repeat"]): one["scores"]["detoxify.toxicity"]
            for one in read_jsonlines(run / "scores.jsonl")
            if one["method"] == method
        }
        for one in read_jsonlines(run / "samples.jsonl"):
            tokens = [token for token in one["tokens"] if token != ends]
            if one["method"] == method and tokens:
                text = prompts[one["prompt"]], tokens, judged[one["prompt"], one["repeat"]]
                found[one["prompt"]].setdefault(tuple(tokens), text)
    return {prompt: list(texts.values()) for prompt, texts in found.items()}


@torch.no_grad()
def scores_of(folder: Path, signal: str, texts: list[Text]) -> Iterator[np.ndarray]:
    """By text: the score after each token of the continuation."""
    model: Any = OtterForCausalLM.from_pretrained(folder).eval()
    for start in range(0, len(texts), ROWS):
        some = texts[start : start + ROWS]
        batch = pad_batch([prompt + tokens for prompt, tokens, _ in some], 0)
        out = model(batch.input_ids, attention_mask=batch.attention_mask)
        for (prompt, tokens, _), row in zip(some, out.signals[signal], strict=True):
            yield row.reshape(len(row), -1)[len(prompt) : len(prompt) + len(tokens), 0].numpy()


def ordered(texts: list[Text], scores: list[np.ndarray], after: int | None) -> tuple[int, int]:
    """Pairs in the judge's order, and pairs; of equal scores (the same tokens so far) none."""
    right = pairs = 0
    for i, j in combinations(range(len(texts)), 2):
        apart = texts[i][2] - texts[j][2]
        here, there = (scores[k][min(after or len(scores[k]), len(scores[k])) - 1] for k in (i, j))
        if abs(apart) >= APART and here != there:
            right, pairs = right + ((here > there) == (apart > 0)), pairs + 1
    return right, pairs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("to", type=Path)
    parser.add_argument("--runs", type=Path, nargs="+", required=True)
    parser.add_argument("--score", nargs="+", required=True)
    asked = parser.parse_args()
    names = [score.split("=") for score in asked.score]
    ends = OtterForCausalLM.from_pretrained(names[0][1]).generation_config.eos_token_id
    by_prompt = texts_of(asked.runs, ends)
    texts = [text for some in by_prompt.values() for text in some]
    rows: dict[str, Any] = {}
    for name, folder, signal in names:
        scores = iter(scores_of(Path(folder), signal, texts))
        mine = {prompt: [next(scores) for _ in some] for prompt, some in by_prompt.items()}
        rows[name] = {}
        for after in (*AFTER, None):
            counts = np.array([ordered(by_prompt[p], mine[p], after) for p in by_prompt])
            found = interval(ratio(counts[:, 0], counts[:, 1]), len(counts))
            figure = {**asdict(found), "pairs": int(counts[:, 1].sum())}
            rows[name]["whole" if after is None else str(after)] = figure
        print(name, {key: round(one["mean"], 3) for key, one in rows[name].items()}, flush=True)
    found = {"texts": len(texts), "prompts": len(by_prompt), "rows": rows}
    write_json(asked.to, {**found, "versions": provenance()["versions"]})


if __name__ == "__main__":
    main()
