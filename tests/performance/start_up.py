"""`otter generate` to its first token beside transformers' own, and what its imports take.

    python -m tests.performance.start_up --graft GRAFT --out FILE.json [--rounds 5] [--top 30]

Both load the model from a warm disk in a fresh process and generate one token, in turns: the wall
and processor seconds of whole processes, and their ratio, of which 1.3 is allowed. The profile of
imports is `python -X importtime`: the least time of each module over the rounds, its own alone.
GRAFT is a grafted folder, which is its base's folder too.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

from otter_cli.core.provenance import provenance
from tests.performance.measure_command import Measured, measure

ALLOWED = 1.3
PROMPT = "How are you?"
STOCK = """
import sys
from transformers import AutoModelForCausalLM, AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
model = AutoModelForCausalLM.from_pretrained(sys.argv[1])
message = [{"role": "user", "content": sys.argv[2]}]
inputs = tokenizer.apply_chat_template(
    message, add_generation_prompt=True, return_tensors="pt", return_dict=True
)
out = model.generate(**inputs, max_new_tokens=1, do_sample=False)
print(tokenizer.decode(out[0, -1:]))
"""
_LINE = re.compile(r"import time:\s+(\d+) \|\s+\d+ \|\s+(\S+)")


def commands(graft: Path) -> dict[str, list[str]]:
    otter = ["-m", "otter_cli", "generate", str(graft), PROMPT, "--max-new-tokens", "1", "--quiet"]
    return {"transformers": ["-c", STOCK, str(graft), PROMPT], "otter": otter}


def run(command: list[str], *python: str) -> Measured:
    with tempfile.TemporaryDirectory() as folder:
        # Memory is seen seldom: what looks often takes the processor from the command.
        return measure([sys.executable, *python, *command], Path(folder) / "log", every=0.05)


def import_times(output: str) -> dict[str, float]:
    """Own seconds of each imported module."""
    return {name: int(own) / 1e6 for own, name in _LINE.findall(output)}


def profile_of(rounds: list[dict[str, float]], top: int) -> dict[str, Any]:
    least = {name: min(each.get(name, own) for each in rounds) for name, own in rounds[0].items()}
    packages: dict[str, float] = defaultdict(float)
    for name, own in least.items():
        packages[name.partition(".")[0]] += own

    def largest(times: dict[str, float]) -> dict[str, float]:
        ordered = sorted(times.items(), key=lambda item: -item[1])
        return {name: round(own, 4) for name, own in ordered[:top]}

    return {
        "modules": len(least),
        "seconds": round(sum(least.values()), 3),
        "by_package": largest(packages),
        "by_module": largest(least),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--graft", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--top", type=int, default=30)
    options = parser.parse_args()
    load = os.getloadavg()[0]
    both = commands(options.graft)
    for command in both.values():  # the first round reads the disk and writes bytecode
        run(command)
    measured: list[dict[str, Measured]] = []
    imports: dict[str, list[dict[str, float]]] = {name: [] for name in both}
    for _ in range(options.rounds):
        measured.append({name: run(command) for name, command in both.items()})
    for _ in range(min(3, options.rounds)):
        for name, command in both.items():
            imports[name].append(import_times(run(command, "-X", "importtime").output))

    def ratio(field: str) -> float:
        pairs = [getattr(e["otter"], field) / getattr(e["transformers"], field) for e in measured]
        return statistics.median(pairs)

    first_token = {
        name: {
            "seconds": statistics.median(each[name].seconds for each in measured),
            "cpu_seconds": statistics.median(each[name].cpu_seconds for each in measured),
            "anonymous_bytes": max(each[name].anonymous_bytes for each in measured),
        }
        for name in both
    }
    found = {
        "first_token": first_token,
        "ratio": {"seconds": ratio("seconds"), "cpu_seconds": ratio("cpu_seconds")},
        "allowed": ALLOWED,
        "rounds": options.rounds,
        "imports": {name: profile_of(rounds, options.top) for name, rounds in imports.items()},
        "load": {"before": load, "after": os.getloadavg()[0]},
        "provenance": provenance(),
    }
    options.out.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    for name, row in first_token.items():
        print(f"{name}: {row['seconds']:.2f} s, {row['cpu_seconds']:.2f} s of processor")
    print(f"otter over transformers: {found['ratio']}, {ALLOWED} allowed")
    for package, seconds in list(found["imports"]["otter"]["by_package"].items())[:12]:
        print(f"  {package}: {seconds:.3f} s")


if __name__ == "__main__":
    main()
