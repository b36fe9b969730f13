"""What signals cost in vLLM, in one engine: with a reward beside every token and without, in turns.

    python -m tests.performance.serving_signals SHARED/models/chat-7m SHARED --shape llama-1b --dtype bfloat16 --threads 2 --out results/serving/signals-llama-1b.json

In the environment of `make test-vllm`. `tests.performance.serving` compares processes,
whose memory lies otherwise from start to start: here it is one process, and a turn takes seconds.
"""  # noqa: E501

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from otter_cli.core.intervals import interval, mean
from otter_cli.core.provenance import provenance
from tests.performance.serving import (
    ENGINE,
    GRAFTS,
    LARGER,
    ON,
    Engine,
    arguments,
    command,
    described,
    made,
    write,
    write_models,
)


def one_engine(
    keywords: dict[str, Any], prompts: list[list[int]], options: argparse.Namespace
) -> dict[str, list[float]]:
    """Seconds without signals and with, by turn; who begins changes, and two turns warm up."""
    engine = Engine(options.threads, True, **keywords)
    print(f"{keywords['model']}: started in {engine.answer()['seconds']:.0f} s", flush=True)
    usual = {"temperature": 0.0, "max_tokens": options.tokens, "ignore_eos": True}
    sides, seconds = {"off": usual, "on": {**usual, **ON}}, {"off": [], "on": []}
    said: Any = None
    for turn in range(options.turns + 2):
        for side in sorted(sides, reverse=bool(turn % 2)):
            found = engine.ask(prompts=prompts, sampling=sides[side])
            said = said or found["tokens"]
            assert found["tokens"] == said
            assert found["numbers"] == (sum(map(len, said)) if side == "on" else 0)
            seconds[side].append(found["seconds"])
    engine.end()
    return {side: found[2:] for side, found in seconds.items()}


def compared(seconds: dict[str, list[float]]) -> dict[str, Any]:
    """Throughput with signals over without, mean over turns and its interval, and the median."""
    ratios = np.array(seconds["off"]) / np.array(seconds["on"])
    figure = interval(mean(ratios), len(ratios), what="on / off")
    rounded = {key: round(getattr(figure, key), 3) for key in ("mean", "low", "high")}
    return {**rounded, "median": round(float(np.median(ratios)), 3), "n": len(ratios)}


def main() -> None:
    sizes = {"turns": 24, "prompts": 16, "longest": 16, "tokens": 32, "threads": 1}
    module, shown = "tests.performance.serving_signals", "throughput with signals over without"
    options = arguments(__doc__.splitlines()[0], sizes).parse_args()
    with tempfile.TemporaryDirectory() as folder:
        base, prompts = made(options, work := Path(folder))
        engines, load = write_models(base, work), os.getloadavg()[0]
        seconds = {
            name: one_engine({**ENGINE, "dtype": options.dtype, **engines[name]}, prompts, options)
            for name in GRAFTS
        }
        record = {
            "command": command(module, options, sizes),
            "base": LARGER[options.shape] if options.shape else options.base.name,
            "insertions": {name: described(work / graft) for name, graft in GRAFTS.items()},
            "load": {"before": load, "after": os.getloadavg()[0]},
            shown: {name: compared(found) for name, found in seconds.items()},
            "seconds": {
                name: {side: [round(one, 3) for one in times] for side, times in sides.items()}
                for name, sides in seconds.items()
            },
            "provenance": provenance([module]),
        }
    write(options.out, record, shown)


if __name__ == "__main__":
    main()
