"""Held-out figures of insertions, ablations and baselines by one recipe, over seeds, as a table:

    python -m tests.performance.training_quality BASE --recipe detox/davidson --signal toxicity
        --steps 100 --seeds 3 --to results/training/davidson.json
    python -m tests.performance.training_quality BASE --recipe speedup/hh --methods future
        --steps 150 --set batch_size=8 --seeds 3 --to results/training/future-tokens.json

Goes on where it was stopped: each run's outcome lies in --work.
"""

import argparse
import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

WHOLE = "--hidden 32 --heads 1 --ffn 68"
# Rates: the best of two to five single runs of 100 steps; those of LoRA and the branch, untuned.
RATE = "--set learning_rate=3e-3"
# Name, options of graft, options of train.
SCORES = [
    ("insertion, 13.5 %", WHOLE, RATE),
    ("task head only", WHOLE, "--baseline head --set baselines.head.learning_rate=1e-2"),
    ("probe over layers", WHOLE, "--baseline probe --set baselines.probe.learning_rate=3e-3"),
    (
        "separate, all weights",
        WHOLE,
        "--baseline separate --set baselines.separate.learning_rate=1e-3",
    ),
    ("insertion, 5 %", "--hidden 8 --heads 1 --ffn 16", RATE),
    ("insertion, 2 %", "--hidden 8 --heads 1 --ffn 8 --layers last:3", RATE),
    ("separate, LoRA", WHOLE, "--baseline lora --set baselines.lora.learning_rate=3e-3"),
    ("FFN only", "--hidden 32 --heads 0 --ffn 68", RATE),
    ("attention only", "--hidden 32 --heads 1 --ffn 0", RATE),
    ("the base's keys and values", "--hidden 32 --heads 4 --kv base --ffn 56", RATE),
    ("first values normal", f"{WHOLE} --init normal", RATE),
    ("first values random", f"{WHOLE} --init random", RATE),
    ("first values zero-output", f"{WHOLE} --init zero-output", RATE),
    ("embedding of zeros", f"{WHOLE} --embedding zeros", RATE),
    ("last half of the layers", "--hidden 32 --heads 1 --ffn 220 --layers last:4", RATE),
    ("norm by the base", f"{WHOLE} --norm base", "--set learning_rate=1e-4"),
    ("copied last layer", WHOLE, "--baseline branch --set baselines.branch.learning_rate=1e-3"),
    ("insertion, 13.5 %, 250 steps", WHOLE, f"{RATE} --set steps=250"),
    ("insertion, 5 %, first values normal", "--hidden 8 --heads 1 --ffn 16 --init normal", RATE),
    ("insertion, 13.2 %, 2 heads", "--hidden 32 --heads 2 --ffn 16", RATE),
]
LATE = "--hidden 32 --heads 1 --ffn 88 --layers last:2 --signal future:4"
FIRST = "--hidden 32 --heads 1 --ffn 88 --signal future:4,plain"
FUTURE = [
    ("insertion in the last 2 layers, cell", LATE, ""),
    ("cell on the base's state, equal parameters", LATE, "--baseline wide"),
    ("cell on the base's state, equal width", LATE, "--baseline head"),
    ("insertion, plain heads", FIRST, ""),
    ("wide MLP heads, equal parameters", FIRST, "--baseline wide"),
    ("Medusa-1", FIRST, "--baseline head"),
]
# One curve of quality against width: D inserted, ffn 2.1 D, keys and values of one head's width.
SIZES = [
    ("D = 0: task head", WHOLE, "--baseline head --set baselines.head.learning_rate=1e-2"),
    ("D = 0: gated probe", WHOLE, "--baseline probe --set baselines.probe.learning_rate=3e-3"),
    ("D = 4", "--hidden 4 --heads 1 --ffn 8", RATE),
    ("D = 16", "--hidden 16 --heads 1 --ffn 34", RATE),
    ("D = 32", WHOLE, RATE),
    ("D = 64", "--hidden 64 --heads 2 --ffn 136", RATE),
    (
        "LoRA probe in the generator",
        WHOLE,
        "--baseline lora-probe --set baselines.lora_probe.learning_rate=3e-3",
    ),
]
# Where 13.5 % of the base's parameters sit: heads, FFN units or hidden width.
BUDGET = [
    ("D = 32, 1 head, FFN 68", WHOLE, RATE),
    ("D = 32, 2 heads, FFN 16", "--hidden 32 --heads 2 --ffn 16", RATE),
    ("D = 22, 3 heads", "--hidden 22 --heads 3 --ffn 0", RATE),
    ("D = 56, 1 head", "--hidden 56 --heads 1 --ffn 0", RATE),
    ("D = 16, 3 heads, FFN 16", "--hidden 16 --heads 3 --ffn 16", RATE),
]
OPTIMISERS = [
    (f"{name}, {rate}", WHOLE, f"--set optimizer={name.lower()} --set learning_rate={rate}")
    for name, rates in (("AdamW", ("1e-3", "3e-3", "1e-2")), ("Muon", ("3e-3", "1e-2", "3e-2")))
    for rate in rates
]
METHODS = {
    "scores": SCORES,
    "future": FUTURE,
    "sizes": SIZES,
    "budget": BUDGET,
    "optimisers": OPTIMISERS,
}


def main() -> None:
    asked = _arguments()
    asked.work.mkdir(parents=True, exist_ok=True)
    for seed in range(asked.seeds):
        for number in _chosen(asked):
            _run(asked, number, seed)
            asked.to.write_text(json.dumps(_table(asked), indent=2) + "\n")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("base", type=Path)
    parser.add_argument("--recipe", required=True)
    parser.add_argument("--methods", choices=METHODS, default="scores")
    parser.add_argument("--only", nargs="+", help="these methods of them, by name")
    parser.add_argument("--signal", help="of the grafts that name none themselves")
    parser.add_argument("--set", action="append", default=[], help="for every run, after its own")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--work", type=Path, default=Path("training-quality"))
    parser.add_argument("--to", type=Path, required=True)
    return parser.parse_args()


def _chosen(asked: argparse.Namespace) -> list[int]:
    """Places of the methods that are run."""
    names = [name for name, *_ in METHODS[asked.methods]]
    return [names.index(name) for name in asked.only or names]


def _run(asked: argparse.Namespace, number: int, seed: int) -> None:
    """One method with one seed; a run that a guard stops is an outcome too."""
    kept = _kept(asked, number, seed)
    folders = [asked.work / f"{what}-{number}-{seed}" for what in ("graft", "baseline")]
    if kept.exists():
        return
    name, graft, train = METHODS[asked.methods][number]
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)
    made = [*(["--signal", asked.signal] if asked.signal else []), "--seed", seed]
    _otter("graft", asked.base, folders[0], *graft.split(), *made)
    to = ["--to", folders[1]] if "--baseline" in train else []
    rest = ["--set", f"steps={asked.steps}", "--set", f"seed={seed}", *train.split(), *to]
    rest += [part for one in asked.set for part in ("--set", one)]
    outcome = _otter("train", folders[0], "--recipe", asked.recipe, *rest)
    kept.write_text(json.dumps(outcome))
    print(name, seed, outcome.get("signals", outcome), flush=True)


def _otter(*arguments: object) -> dict[str, Any]:
    command = [sys.executable, "-m", "otter_cli", *map(str, arguments), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == 1:
        return {"stopped": done.stderr.strip().splitlines()[-2:]}
    if done.returncode:
        raise SystemExit(done.stderr)
    return dict(json.loads(done.stdout))


def _kept(asked: argparse.Namespace, number: int, seed: int) -> Path:
    return Path(asked.work / f"{number}-{seed}.json")


def _table(asked: argparse.Namespace) -> dict[str, Any]:
    rows: list[dict[str, Any]] = []
    data: Any = None
    for number in _chosen(asked):
        name, graft, train = METHODS[asked.methods][number]
        files = [_kept(asked, number, seed) for seed in range(asked.seeds)]
        found = [json.loads(file.read_text()) for file in files if file.exists()]
        whole = [outcome for outcome in found if "stopped" not in outcome]
        row: dict[str, Any] = {"method": name, "graft": graft, "train": train}
        row["stopped"] = [outcome["stopped"] for outcome in found if "stopped" in outcome]
        if whole:
            (signal,) = whole[0]["signals"]
            data = whole[0]["data"][signal]
            row["trained_parameters"] = whole[0]["trained_parameters"]
            for metric in whole[0]["signals"][signal]:
                row[metric] = _over_seeds([o["signals"][signal][metric] for o in whole])
        rows.append(row)
    told = {"recipe": asked.recipe, "base": asked.base.name, "steps": asked.steps}
    return {**told, "command": shlex.join(["BASE", *sys.argv[2:]]), "data": data, "rows": rows}


def _over_seeds(figures: list[dict[str, float]]) -> dict[str, Any]:
    """Mean and Student's interval over seeds, with each seed's own bootstrap interval."""
    means = np.array([figure["mean"] for figure in figures])
    summary: dict[str, Any] = {"mean": float(means.mean()), "n": len(means), "seeds": figures}
    if len(means) > 1:
        half = stats.t.ppf(0.975, len(means) - 1) * means.std(ddof=1) / len(means) ** 0.5
        summary |= {"low": float(means.mean() - half), "high": float(means.mean() + half)}
    return summary


if __name__ == "__main__":
    main()
