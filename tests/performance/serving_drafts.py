"""What future heads save as a drafter in vLLM: stock, heads on the base's state, heads on [y ; v].

    python -m tests.performance.serving_drafts SHARED/models/chat-7m SHARED HEADS STREAM --out results/serving/drafting.json

HEADS and STREAM: grafts of the base with a trained signal `future` of plain heads, the first one
without hidden units. In the environment of `make test-vllm`. Greedy text, which has to be stock's
token by token; times are paired within a round, and who begins moves on.
"""  # noqa: E501

from __future__ import annotations

import argparse
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from otter_cli.core.intervals import interval, ratio
from otter_cli.core.provenance import provenance
from otter_cli.graft.manifest import Manifest
from otter_cli.serving.vllm.export import export_vllm
from tests.performance.serving import ENGINE, Engine, prompts_of

STOCK, HEADS, STREAM = "stock", "heads on the base's state", "heads beside an insertion"


def models(options: argparse.Namespace, work: Path) -> dict[str, dict[str, Any]]:
    """Keywords of LLM for each side; stock vLLM drafts with heads that read its base alone."""
    found: dict[str, dict[str, Any]] = {STOCK: {"model": str(options.base)}}
    for name, graft in ((HEADS, options.heads), (STREAM, options.stream)):
        served = work / name.replace(" ", "-")
        export_vllm(graft, served, draft="future")
        speculative = {
            "method": "medusa",
            "model": str(served / "drafter"),
            "num_speculative_tokens": options.drafts,
        }
        model = options.base if name == HEADS else served
        found[name] = {"model": str(model), "speculative_config": speculative}
    return found


def measure(options: argparse.Namespace, work: Path) -> dict[str, Any]:
    settings = {**ENGINE, "max_num_seqs": options.rows, "disable_log_stats": False}
    settings["enforce_eager"] = options.eager
    sampling = {"temperature": 0.0, "max_tokens": options.tokens, "ignore_eos": True}
    prompts = prompts_of(options.shared, options.base, options.prompts, options.longest)
    load, engines, rounds = os.getloadavg()[0], {}, []
    for name, keywords in models(options, work).items():
        engines[name] = Engine(options.threads, name == STREAM, **settings, **keywords)
        engines[name].answer()
    names = list(engines)
    for turn in range(options.rounds + 1):
        found = {
            name: engines[name].ask(prompts=prompts, sampling=sampling)
            for name in names[turn % len(names) :] + names[: turn % len(names)]
        }
        print({name: round(one["seconds"], 2) for name, one in found.items()}, flush=True)
        rounds.append(found)
    counts = {name: engine.ask(counters=True)["counters"] for name, engine in engines.items()}
    for engine in engines.values():
        engine.end()
    rounds = rounds[1:]  # the first warms up
    return {
        "engine": settings,
        "load": {"before": load, "after": os.getloadavg()[0]},
        "sides": {name: side(name, rounds, counts[name]) for name in names},
        "insertion": Manifest.read(options.stream).insertions[0].model_dump(mode="json"),
    }


def side(name: str, rounds: list[dict[str, Any]], counts: dict[str, Any]) -> dict[str, Any]:
    """Throughput over stock's, and what became of its drafts."""
    times = {one: np.array([r[one]["seconds"] for r in rounds]) for one in (STOCK, name)}
    figure = interval(ratio(times[STOCK], times[name]), len(rounds), what=name)
    said = [r[name]["tokens"] == r[STOCK]["tokens"] for r in rounds]
    drafts = counts.get("num_drafts", 0)
    accepted = counts.get("num_accepted_tokens_per_pos", [])
    return {
        "throughput_over_stock": {k: round(getattr(figure, k), 3) for k in ("mean", "low", "high")},
        "seconds": times[name].round(3).tolist(),
        "tokens_equal_to_stock": all(said),
        "drafts": drafts,
        "accepted_by_position": [round(count / drafts, 4) for count in accepted],
        "tokens_a_step": round(1 + sum(accepted) / drafts, 4) if drafts else 1.0,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("base", "shared", "heads", "stream"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--out", type=Path, required=True)
    sizes = {"rounds": 8, "prompts": 8, "longest": 64, "tokens": 48, "threads": 1, "rows": 1}
    for name, usual in {**sizes, "drafts": 3}.items():
        parser.add_argument(f"--{name}", type=int, default=usual)
    parser.add_argument("--eager", action="store_true", help="without torch.compile")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        record = {
            **{name: getattr(options, name) for name in (*sizes, "drafts", "eager")},
            **measure(options, Path(work)),
            "provenance": provenance(["tests.performance.serving_drafts"]),
        }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(record, indent=2) + "\n", "utf-8")
    print(json.dumps(record["sides"], indent=2))


if __name__ == "__main__":
    main()
