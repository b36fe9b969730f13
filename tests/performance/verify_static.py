"""`otter verify --static` beside sha256sum of the same files, both on one core, in turns.

    python -m tests.performance.verify_static --work DIR --layers 4 --rounds 7

Writes a Llama-7B-wide base of that many layers into DIR (2.1 GB with four) and removes it. The
files are read once before, so both read memory; otter remembers no digest from round to round.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

from tests.performance.measure_command import Measured, measure
from tests.performance.surgery import write_base

ONE_CORE = ("taskset", "--cpu-list", "0")
OTTER = (sys.executable, "-m", "otter_cli")


def one_round(grafted: Path, work: Path, first: str) -> dict[str, Measured]:
    shutil.rmtree(work / "cache", ignore_errors=True)
    home = {**os.environ, "XDG_CACHE_HOME": str(work / "cache")}
    files = [str(path) for path in sorted(grafted.iterdir())]
    commands = {
        "sha256sum": [*ONE_CORE, "sha256sum", *files],
        "otter verify --static": [*ONE_CORE, *OTTER, "verify", str(grafted), "--static",
                                  "--proof", str(work / "proof.json"), "--json"],
    }  # fmt: skip
    order = sorted(commands, key=lambda name: name != first)
    return {name: measure(commands[name], work / "log", home) for name in order}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=7)
    asked = parser.parse_args()
    base, grafted = asked.work / "base", asked.work / "grafted"
    try:
        write_base(base, asked.layers)
        subprocess.run([*OTTER, "graft", str(base), str(grafted), "--quiet"], check=True)
        names = ("sha256sum", "otter verify --static")
        one_round(grafted, asked.work, names[0])
        rounds = [one_round(grafted, asked.work, names[i % 2]) for i in range(asked.rounds)]
        size = sum(path.stat().st_size for path in grafted.iterdir())
    finally:
        shutil.rmtree(base, ignore_errors=True)
        shutil.rmtree(grafted, ignore_errors=True)
    hashes, verifies = ([one[name] for one in rounds] for name in names)
    pairs = list(zip(hashes, verifies, strict=True))
    found = {
        "bytes": size,
        "rounds": asked.rounds,
        "speed_over_sha256sum": statistics.median(h.seconds / v.seconds for h, v in pairs),
        "speed_over_sha256sum_by_cpu_time": statistics.median(
            h.cpu_seconds / v.cpu_seconds for h, v in pairs
        ),
        "sha256sum_seconds": [round(one.seconds, 3) for one in hashes],
        "verify_seconds": [round(one.seconds, 3) for one in verifies],
        "goal": 0.9,
    }
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
