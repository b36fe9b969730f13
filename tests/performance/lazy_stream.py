"""What a token costs where the stream sleeps until somebody looks, and where it runs every time.

    python -m tests.performance.lazy_stream GRAFT PROMPTS TO --signal reward

Prompt by prompt in turns: plain, the signal read beside it, and V-style guidance behind gates that
open at few or many of the tokens. Times are the processor's own, over plain's; greedy, no ends.
"""

import argparse
import json
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from operator import eq
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
from transformers import AutoTokenizer

from otter_cli.core.atomic import write_json
from otter_cli.core.intervals import interval, median
from otter_cli.core.provenance import provenance
from otter_cli.data.prompts import read_prompts
from otter_cli.decoding.bounds import Gate
from otter_cli.decoding.generate import generate
from otter_cli.decoding.guides.signal_guides import SignalGuide
from otter_cli.decoding.results import Generation
from otter_cli.decoding.sampling import Sampling
from otter_cli.model.otter import OtterForCausalLM

NEW = 64
GATES = (0.0, 0.1, 0.3, 1.0)  # open where the best token is less likely: never at 0


def awake() -> AbstractContextManager[Any]:
    return patch("otter_cli.decoding.session.supports_lazy_stream", lambda _: False)


Options = dict[str, Any]
Contestant = tuple[Options, Callable[[], AbstractContextManager[Any]]]


def contestants(signal: str) -> dict[str, Contestant]:
    read: Options = {"signals": [signal]}
    found: dict[str, Contestant] = {
        "plain": ({}, nullcontext),
        "read at every token": ({**read, "read_every": 1}, nullcontext),
        "read, 4 at once": ({**read, "read_every": 4}, nullcontext),
        "read, 16 at once": ({**read, "read_every": 16}, nullcontext),
    }
    for bound in GATES:
        guided: Options = {
            "guide": SignalGuide(signal, 1.0, 10),
            "gate": Gate(top_probability=bound),
        }
        found[f"guided, p<{bound:g}, awake"] = guided, awake
        found[f"guided, p<{bound:g}, asleep"] = guided, nullcontext
    return found


def run(model: Any, ids: list[int], how: Contestant) -> tuple[float, Generation]:
    options, around = how
    with around():
        started = time.process_time()
        (row,) = generate(model, [ids], Sampling(NEW, ignore_eos=True), **options)
        return time.process_time() - started, row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("graft", "prompts", "to"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--signal", required=True)
    parser.add_argument("--count", type=int, default=40, help="the first so many that fit")
    asked = parser.parse_args()
    model = OtterForCausalLM.from_pretrained(asked.graft)
    tokenizer = AutoTokenizer.from_pretrained(asked.graft)
    every = [tokenizer(prompt.text)["input_ids"] for prompt in read_prompts(asked.prompts)]
    fitting = [ids for ids in every if len(ids) <= model.shape.max_positions - NEW]
    hows = contestants(asked.signal)
    names, spent = list(hows), {name: list[float]() for name in hows}
    texts: dict[str, list[list[int]]] = {name: [] for name in hows}
    fed: dict[str, int] = dict.fromkeys(hows, 0)
    for number, ids in enumerate(fitting[: asked.count + 1]):  # the first warms up
        for name in names[number % len(names) :] + names[: number % len(names)]:
            seconds, row = run(model, ids, hows[name])
            if number:
                spent[name].append(seconds)
                texts[name].append(row.tokens)
                fed[name] += row.counters.tokens_fed
    plain = np.array(spent["plain"])
    rows = {
        name: {
            "time_over_plain": asdict(interval(median(np.array(spent[name]) / plain), len(plain))),
            # A guided step feeds ten candidates in place of one token.
            "guided_steps_a_token": (fed[name] - fed["plain"]) / (9 * NEW * len(plain))
            if "guided" in name
            else 0.0,
            "identical_to_plain": sum(map(eq, texts[name], texts["plain"])),
        }
        for name in names
    }
    same = all(
        texts[f"guided, p<{bound:g}, awake"] == texts[f"guided, p<{bound:g}, asleep"]
        for bound in GATES
    )
    found = {
        "base": Path(model.manifest.base.source).name,
        "inserted": sum(p.numel() for _, p in model.inserted_parameters()),
        "file": asked.prompts.name,
        "prompts": len(plain),
        "new_tokens": NEW,
        "asleep_writes_what_awake_writes": same,
        "rows": rows,
        "versions": provenance()["versions"],
    }
    write_json(asked.to, found)
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
