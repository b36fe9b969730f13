"""The first road of a user, each command timed: import, graft, train, verify, chat, generate.

    python -m tests.performance.first_road MODEL.gguf --work DIR --out results/demo/first-road.json

The base is the GGUF file of SmolLM2-135M-Instruct; the 200 prompts are made here. A teacher (VADER)
scores what the base writes, and the inserted signal learns the score of every next token. All
commands are the ones that a user types; none has an option that this page's reader would not know.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

from otter_cli.core.provenance import provenance
from tests.performance.measure_command import measure

TOPICS = (
    "the train ride", "my new bicycle", "the film last night", "our garden", "the soup",
    "a long meeting", "the museum", "our neighbour's dog", "the phone I bought", "the weather",
    "a school concert", "the hotel", "my first marathon", "the old bridge", "a cooking class",
    "the library", "a camping trip", "the new office", "a birthday party", "the football match",
)  # fmt: skip
OPENINGS = (
    "What do you think of {}?", "Write two sentences about {}.", "Tell a friend about {}.",
    "Describe {} in a short letter.", "How was {}?", "Write a review of {}.",
    "What would you say about {}?", "Write a diary entry about {}.", "Give your opinion on {}.",
    "Write a message to your family about {}.",
)  # fmt: skip
TEACHER = "python:otter_cli.demo.sentiment_lexicons:vader"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    options.work.mkdir(parents=True)
    base, graft, prompts = (options.work / name for name in ("base", "graft", "prompts.txt"))
    prompts.write_text("".join(f"{o.format(t)}\n" for t in TOPICS for o in OPENINGS))
    messages = options.work / "messages.txt"
    messages.write_text("Good morning!\nHow was your holiday?\n")
    ask = "What do you think of Mondays?"
    guided = [str(graft), ask, "--max-new-tokens", "40"]
    steps: dict[str, list[str]] = {
        "import": ["import", str(options.model), str(base)],
        "graft": ["graft", str(base), str(graft), "--signal", "mood=action-reward"],
        "train --teacher": ["train", str(graft), "--teacher", TEACHER, "--prompts", str(prompts)],
        "verify": ["verify", str(graft)],
        "chat": ["chat", str(graft), "--max-new-tokens", "40"],
        "generate": ["generate", *guided],
        "generate --guide": ["generate", *guided, "--guide", "mood:2"],
    }
    environment = {**os.environ, "OMP_NUM_THREADS": str(options.threads)}
    rows: list[dict[str, Any]] = []
    for name, arguments in steps.items():
        command = [sys.executable, "-m", "otter_cli", *arguments]
        if name == "chat":
            command = ["sh", "-c", f'exec "$@" < {messages}', "sh", *command]
        log = options.work / f"{name.replace(' ', '')}.log"
        measured = measure(command, log, environment, every=0.25)
        shown = " ".join(arguments).replace(str(options.work), "DIR")
        rows.append({
            "step": name, "command": f"otter {shown}", "seconds": round(measured.seconds, 1),
            "cpu_seconds": round(measured.cpu_seconds, 1),
            "peak_bytes": measured.resident_bytes,
            "ends_with": measured.output[-600:].replace(str(options.work), "DIR"),
        })  # fmt: skip
        print(f"{name:18} {measured.seconds:6.1f} s  {measured.resident_bytes / 1e9:.2f} GB")
    total = sum(row["seconds"] for row in rows)
    print(f"{'all':18} {total:6.1f} s")
    record = {"steps": rows, "seconds": round(total, 1), "threads": options.threads}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps({**record, "provenance": provenance()}, indent=2) + "\n")


if __name__ == "__main__":
    main()
