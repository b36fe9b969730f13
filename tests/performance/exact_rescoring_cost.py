"""What `exact` costs: plain, drafted, and drafted exactly, prompt by prompt in turns.

    python -m tests.performance.exact_rescoring_cost GRAFT PROMPTS results/decoding/exact-cost.json

GRAFT has a trained signal `future`; PROMPTS are spec-bench's, say. Times are the processor's own,
which other work on the machine moves less than the clock's.
"""

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from transformers import AutoTokenizer

from otter_cli.core.atomic import write_json
from otter_cli.core.intervals import interval, ratio
from otter_cli.core.provenance import provenance
from otter_cli.data.prompts import read_prompts
from otter_cli.decoding.generate import generate
from otter_cli.decoding.results import Generation
from otter_cli.decoding.sampling import Sampling
from otter_cli.decoding.speculative.drafters import FutureDrafter, PromptLookup
from otter_cli.model.otter import OtterForCausalLM

NEW = 64
DRAFTERS = {"future": FutureDrafter(), "prompt lookup": PromptLookup()}


Timed = tuple[float, Generation]


def contestants(model: Any) -> dict[str, Callable[[list[int]], Timed]]:
    def one(**options: Any) -> Callable[[list[int]], Timed]:
        def timed(ids: list[int]) -> Timed:
            started = time.process_time()
            (row,) = generate(model, [ids], Sampling(NEW), **options)
            return time.process_time() - started, row

        return timed

    found = {"plain": one()}
    for name, drafter in DRAFTERS.items():
        found[name] = one(drafter=drafter)
        found[f"{name}, exact"] = one(drafter=drafter, exact=True)
    return found


def measure(model: Any, encoded: list[list[int]]) -> dict[str, list[Timed]]:
    """Each prompt by all of them, begun by another one every time; the first warms up."""
    runs = contestants(model)
    names = list(runs)
    rows: dict[str, list[Timed]] = {name: [] for name in runs}
    for number, ids in enumerate([encoded[0], *encoded]):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            timed = runs[name](ids)
            if number:
                rows[name].append(timed)
    return rows


def figures(rows: dict[str, list[Timed]], name: str, reference: str) -> dict[str, Any]:
    def seconds(name: str) -> np.ndarray:
        return np.array([spent for spent, _ in rows[name]])

    own, plain = ([row for _, row in rows[one]] for one in (name, "plain"))
    quotient = ratio(seconds(name), seconds(reference))
    return {
        f"time_over_{reference}": asdict(interval(quotient, len(own))),
        "tokens": sum(len(row.tokens) for row in own),
        "base_passes": sum(row.counters.base_passes for row in own),
        "rescoring_passes": sum(row.counters.rescoring_passes for row in own),
        "near_ties": sum(len(row.near_ties) for row in own),
        "identical": sum(a.tokens == b.tokens for a, b in zip(own, plain, strict=True)),
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    for name in ("graft", "prompts", "to"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--count", type=int, default=100, help="the first so many that fit")
    asked = parser.parse_args()
    model = OtterForCausalLM.from_pretrained(asked.graft)
    tokenizer = AutoTokenizer.from_pretrained(asked.graft)
    every = [tokenizer(prompt.text)["input_ids"] for prompt in read_prompts(asked.prompts)]
    fitting = [ids for ids in every if len(ids) <= model.shape.max_positions - NEW]
    rows = measure(model, fitting[: asked.count])
    found = {
        "base": Path(model.manifest.base.source).name,
        "file": asked.prompts.name,
        "prompts": len(rows["plain"]),
        "new_tokens": NEW,
        "drafters": {
            name: figures(rows, name, "plain") | {"exact": figures(rows, f"{name}, exact", name)}
            for name in DRAFTERS
        },
        "versions": provenance()["versions"],
    }
    write_json(asked.to, found)
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
