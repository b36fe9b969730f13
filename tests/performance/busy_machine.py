"""Training and the tiny demo beside busy loops, and what sleeping threads cost where it is quiet.

    python -m tests.performance.busy_machine --work DIR --out FILE.json --model BASE
        [--loops 6] [--rounds 3] [--steps 40] [--demo-steps 40] [--parts decode,train,demo]

Run it on a quiet machine. It starts the loops itself, at the priority of the commands. Every part
runs in turns:

decode  the time of a token of BASE by transformers alone, with a thread for each core: threads that
        spin as OpenMP's default has them, threads that sleep at once, and threads that soon
        sleep. No loops run.
train   `otter train` on a graft of the tiny base that ships: alone with one thread, and beside the
        loops as otter decides, with one thread, and as without otter's decision (spinning).
demo    `otter demo --tiny`: alone with one thread, and beside the loops as otter decides.

The fair time of a command is its processor time with one thread, alone, over that thread's share of
the cores: cores / (loops + 1). At most twice that is allowed. A command that takes --patience times
it (10) is ended, and its row says so.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from otter_cli.core.cpu_limits import usable_cores
from otter_cli.core.provenance import provenance

ALLOWED = 2.0
OTTER = (sys.executable, "-m", "otter_cli")
NAMES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
# What GNU's OpenMP does where nothing is set, named so that otter takes it for the user's choice.
SPINNING = {"OMP_NUM_THREADS": str(usable_cores()), "GOMP_SPINCOUNT": "300000"}
ONE_THREAD = {"OMP_NUM_THREADS": "1"}
WAYS: dict[str, dict[str, str]] = {"as otter decides": {}, "one thread": ONE_THREAD}

DECODE = """
import sys, time, torch
from transformers import AutoModelForCausalLM
torch.set_grad_enabled(False)
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32)
tokens = torch.arange(100, 132)[None]
cache = model(tokens, use_cache=True).past_key_values
times = []
for _ in range(64):
    start = time.perf_counter()
    model(tokens[:, :1], past_key_values=cache, use_cache=True)
    times.append(time.perf_counter() - start)
print(sorted(times)[len(times) // 2])
"""


@dataclass(frozen=True)
class Run:
    """`ended`: it was ended before it finished. `cpu_seconds`: user and system, of all threads."""

    seconds: float
    cpu_seconds: float
    ended: bool
    output: str


def environment(**own: str) -> dict[str, str]:
    return {**{k: v for k, v in os.environ.items() if k not in NAMES}, **own}


def run(command: list[str], log: Path, patience: float = 1e9, **own: str) -> Run:
    """Runs a command to its end, or for `patience` seconds. RuntimeError if it fails."""
    with open(log, "w+", encoding="utf-8") as output:
        start, ended = time.perf_counter(), False
        child = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, env=environment(**own)
        )
        try:
            while True:
                pid, status, usage = os.wait4(child.pid, os.WNOHANG)
                seconds = time.perf_counter() - start
                if pid:
                    break
                if seconds > patience and not ended:
                    child.kill()
                    ended = True
                time.sleep(0.1)
        except BaseException:
            child.kill()
            raise
        child.returncode = os.waitstatus_to_exitcode(status)
        output.seek(0)
        text = output.read()
    if child.returncode and not ended:
        raise RuntimeError(f"{' '.join(command)} ended with {child.returncode}:\n{text[-2000:]}")
    return Run(seconds, usage.ru_utime + usage.ru_stime, ended, text)


@contextmanager
def busy_loops(count: int) -> Iterator[None]:
    loops = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        time.sleep(1.0)
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


def decode_part(options: argparse.Namespace) -> dict[str, Any]:
    ways = {
        "spinning": SPINNING,
        "sleeping": {"OMP_NUM_THREADS": SPINNING["OMP_NUM_THREADS"], "OMP_WAIT_POLICY": "PASSIVE"},
        "soon sleeping": {"OMP_NUM_THREADS": SPINNING["OMP_NUM_THREADS"], "GOMP_SPINCOUNT": "2000"},
        "one thread": ONE_THREAD,
    }
    command = [sys.executable, "-c", DECODE, str(options.model)]
    rounds = []
    for _ in range(options.rounds):
        log = options.work / "log"
        rounds.append(
            {n: float(run(command, log, **o).output.split()[-1]) for n, o in ways.items()}
        )
    ratios = [each["sleeping"] / each["spinning"] for each in rounds]
    medians = {name: 1000 * statistics.median(each[name] for each in rounds) for name in ways}
    for name, milliseconds in medians.items():
        print(f"decode, quiet, {name}: {milliseconds:.2f} ms a token", flush=True)
    return {"milliseconds": medians, "sleeping_over_spinning": ratios, "rounds": rounds}


def beside_loops(
    name: str, command: list[str], ways: dict[str, dict[str, str]], options: argparse.Namespace
) -> dict[str, Any]:
    """The command alone with one thread, and then each way beside the loops, in turns."""
    log = options.work / "log"
    runs: dict[str, list[Run]] = {way: [] for way in ways}
    alone = []
    for _ in range(options.rounds):
        alone.append(run(command, log, **ONE_THREAD))
        fair = alone[-1].cpu_seconds * (options.loops + 1) / usable_cores()
        with busy_loops(options.loops):
            for way, own in ways.items():
                runs[way].append(run(command, log, options.patience * fair, **own))
    fair = statistics.median(r.cpu_seconds for r in alone) * (options.loops + 1) / usable_cores()
    rows = {"alone, one thread": _row(alone, fair), **{w: _row(r, fair) for w, r in runs.items()}}
    for way, row in rows.items():
        more = "more than " if row["ended"] else ""
        print(
            f"{name}, {way}: {more}{row['seconds']:.1f} s, {row['cpu_seconds']:.1f} s of "
            f"processor, {row['over_fair']:.2f} of the fair {fair:.1f} s",
            flush=True,
        )
    return {"fair_seconds": fair, "allowed": ALLOWED, "rows": rows}


def _row(runs: list[Run], fair: float) -> dict[str, Any]:
    seconds = statistics.median(each.seconds for each in runs)
    return {
        "seconds": seconds,
        "cpu_seconds": statistics.median(each.cpu_seconds for each in runs),
        "over_fair": seconds / fair,
        "ended": any(each.ended for each in runs),
        "warned": any("other programs use the processor" in each.output for each in runs),
        "runs": [{k: v for k, v in asdict(each).items() if k != "output"} for each in runs],
    }


def train_part(options: argparse.Namespace) -> dict[str, Any]:
    from otter_cli.demo import BASE
    from otter_cli.demo.world import write_world

    graft, data = options.work / "graft", options.work / "data"
    write_world(data, seed=0)
    sizes = ["--hidden", "32", "--heads", "1", "--ffn", "64", "--copy"]
    signals = [part for text in ("reward", "toxicity", "future:3") for part in ("--signal", text)]
    run([*OTTER, "graft", str(BASE), str(graft), *sizes, *signals], options.work / "log")
    command = [
        *OTTER, "train", str(graft), "--recipe", "demo/signals", "--data", str(data), "--restart",
        "--set", f"steps={options.steps}",
    ]  # fmt: skip
    ways = {**WAYS, "spinning": SPINNING}
    return beside_loops("train", command, ways, options)


def demo_part(options: argparse.Namespace) -> dict[str, Any]:
    folder = options.work / "demo"
    # A finished demo resumes, so each run gets a new folder.
    script = 'rm -rf "$1"; shift; exec "$@"'
    command = [
        "sh", "-c", script, "-", str(folder), *OTTER, "demo", str(folder), "--tiny",
        "--set", f"steps={options.demo_steps}",
    ]  # fmt: skip
    return beside_loops("demo", command, {"as otter decides": {}}, options)


PARTS = {"decode": decode_part, "train": train_part, "demo": demo_part}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="a folder to fill, and remove")
    parser.add_argument("--out", type=Path, required=True, help="where the JSON goes")
    parser.add_argument("--model", type=Path, help="a base, for the part `decode`")
    parser.add_argument("--loops", type=int, default=6)
    parser.add_argument("--patience", type=float, default=10.0, help="of the fair time")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=40, help="of `otter train`")
    parser.add_argument("--demo-steps", type=int, default=40, help="of each training of the demo")
    parser.add_argument("--parts", default=",".join(PARTS))
    options = parser.parse_args()
    # So that no loop stays where this script is ended.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(143))
    options.work.mkdir(parents=True)
    load = os.getloadavg()[0]
    found: dict[str, Any] = {"loops": options.loops, "cores": usable_cores()}
    try:
        for part in options.parts.split(","):
            found[part] = PARTS[part](options)
    finally:
        shutil.rmtree(options.work)
    found["load"] = {"before": load, "after": os.getloadavg()[0]}
    found["provenance"] = provenance()
    options.out.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
