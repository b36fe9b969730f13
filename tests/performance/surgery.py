"""Grafting a 7B-shaped checkpoint: time and memory beside cp, sha256sum and mergekit.

    python -m tests.performance.surgery --work DIR --out results/performance/surgery \\
        --mergekit MERGEKIT_VENV/bin/python

Writes 13.5 GB into DIR, and at most as much again at a time; both are removed at the end. Before
each command the base's pages are dropped, and what the one before has written is on the disk.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from otter_cli.checkpoint.dtypes import encode
from otter_cli.checkpoint.folder import Checkpoint
from otter_cli.checkpoint.safetensors_writer import TensorSpec, write_sharded
from otter_cli.core.formatting import bytes_text
from otter_cli.core.provenance import provenance
from otter_cli.families.shape import base_shape, expected_tensors
from tests.performance.measure_command import Measured, forget, measure

CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 4096,
    "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32,
    "num_key_value_heads": 32, "vocab_size": 32000, "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5, "hidden_act": "silu", "rope_theta": 1e4, "dtype": "bfloat16",
    "tie_word_embeddings": False, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
Run = Callable[[], Measured]


def write_base(folder: Path, layers: int) -> None:
    """Random bfloat16 values: nothing that a file system or a disk could leave out."""
    folder.mkdir(parents=True)
    config = {**CONFIG, "num_hidden_layers": layers}
    (folder / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
    shape = base_shape(config)
    forms = dict(expected_tensors(shape)) | {shape.family.head_weight: (shape.vocab, shape.hidden)}
    specs = {name: TensorSpec("BF16", form) for name, form in forms.items()}
    pool = encode(np.random.default_rng(0).normal(0, 0.02, 2**25).astype(np.float32), "BF16")
    write_sharded(folder, "model", specs, lambda name: np.resize(pool, forms[name]))


def runs(base: Path, work: Path, mergekit: str | None) -> dict[str, Run]:
    """What is compared, in the order of one round; each leaves its output in work/out."""
    out, log = work / "out", work / "log"
    otter = [sys.executable, "-m", "otter_cli", "graft", str(base), str(out), "--json"]
    home = {**os.environ, "XDG_CACHE_HOME": str(work / "cache")}
    # cp returns before its pages are on the disk, which a graft waits for.
    durable = ["sh", "-c", 'cp -r "$0" "$1" && sync "$1"/*', str(base), str(out)]
    files = [str(path) for path in sorted(base.iterdir())]
    found: dict[str, Run] = {
        "sha256sum": lambda: measure(["sha256sum", *files], log),
        "cp -r": lambda: measure(["cp", "-r", str(base), str(out)], log),
        "cp -r, then sync": lambda: measure(durable, log),
        "otter graft --copy": lambda: measure([*otter, "--copy"], log, home),
        "otter graft, first time": lambda: measure(otter, log, home),
        "otter graft, digests known": lambda: measure(otter, log, home),
    }
    if mergekit:
        recipe = work / "passthrough.yml"
        recipe.write_text(
            f"merge_method: passthrough\nmodels:\n- model: {base}\ndtype: bfloat16\n",
            encoding="utf-8",
        )
        command = [mergekit, "-m", "mergekit.scripts.run_yaml", str(recipe), str(out), "--quiet"]
        found["mergekit passthrough"] = lambda: measure(command, log)
    return found


def measure_all(base: Path, work: Path, mergekit: str | None, rounds: int) -> dict[str, Any]:
    taken: dict[str, list[Measured]] = {}
    digests: dict[str, str] = {}
    for turn in range(rounds):
        shutil.rmtree(work / "cache", ignore_errors=True)
        for name, run in runs(base, work, mergekit).items():
            forget(base)
            found = run()
            taken.setdefault(name, []).append(found)
            print(f"round {turn + 1}: {name}: {found.seconds:.1f} s", flush=True)
            if name == "sha256sum":
                lines = [line.split(maxsplit=1) for line in found.output.splitlines()]
                digests = {Path(path).name: digest for digest, path in lines}
            elif name.startswith("otter"):
                _compare_digests(work / "out", digests)
            shutil.rmtree(work / "out", ignore_errors=True)
    return {name: _row(found) for name, found in taken.items()}


def _compare_digests(graft: Path, expected: dict[str, str]) -> None:
    files = json.loads((graft / "otter.json").read_text(encoding="utf-8"))["base"]["files"]
    assert {name: record["sha256"] for name, record in files.items()} == expected


def _row(found: list[Measured]) -> dict[str, Any]:
    return {
        "seconds": [round(one.seconds, 2) for one in found],
        "median_seconds": round(statistics.median(one.seconds for one in found), 2),
        "cpu_seconds": [round(one.cpu_seconds, 2) for one in found],
        "peak_anonymous_bytes": max(one.anonymous_bytes for one in found),
        "peak_resident_bytes": max(one.resident_bytes for one in found),
    }


def judge(record: dict[str, Any]) -> dict[str, Any]:
    """The goals: 0.9 of the slower of cp and sha256sum; 300 MB and the largest tensor."""
    rows, allowed = record["rows"], 300_000_000 + record["largest_tensor_bytes"]
    pairs = zip(rows["cp -r"]["seconds"], rows["sha256sum"]["seconds"], strict=True)
    slower = [max(pair) for pair in pairs]
    speeds = [
        limit / mine
        for limit, mine in zip(slower, rows["otter graft --copy"]["seconds"], strict=True)
    ]
    peak = max(row["peak_anonymous_bytes"] for name, row in rows.items() if "otter" in name)
    return {
        "copy_speed_over_slower_of_cp_and_sha256sum": [round(speed, 3) for speed in speeds],
        "copy_speed_goal": 0.9,
        "peak_anonymous_bytes": peak,
        "peak_anonymous_goal": allowed,
    }


def page(record: dict[str, Any]) -> str:
    """The table as Markdown."""
    made, goals = record["provenance"]["hardware"], record["goals"]
    speeds = ", ".join(str(s) for s in goals["copy_speed_over_slower_of_cp_and_sha256sum"])
    rows = []
    for name, row in record["rows"].items():
        rate = record["base_bytes"] / row["median_seconds"] / 1e9
        memory = (bytes_text(row[f"peak_{kind}_bytes"]) for kind in ("anonymous", "resident"))
        times = f"{row['median_seconds']:.1f} | {statistics.median(row['cpu_seconds']):.1f}"
        rows.append(f"| {name} | {times} | {rate:.3f} | {' | '.join(memory)} |")
    tools = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    return f"""# Grafting {bytes_text(record["base_bytes"])}: time and memory

One Llama-7B-shaped checkpoint of random bf16 values in {record["shards"]} shard(s), read from the
disk by each command in turn ({record["rounds"]} round(s); medians, peaks over all rounds). The
graft's sizes are the default, a sixteenth of the base's.

| command | seconds | of the CPU | GB/s | peak anonymous memory | peak resident memory |
|---|---|---|---|---|---|
{chr(10).join(rows)}

- `--copy` against the slower of `cp -r` and `sha256sum`, round by round: {speeds} (goal 0.9). A
  graft is on the disk when it returns; `cp -r` alone is not.
- Anonymous memory of grafts: {bytes_text(goals["peak_anonymous_bytes"])} at most (goal
  {bytes_text(goals["peak_anonymous_goal"])}: 300 MB and the largest tensor).
- mergekit loads and writes every tensor; a graft writes the inserted ones alone.
- Load of the machine before the first command, by the kernel: {record["load"]:.1f} processes.

Made by `{record["command"]}` on {made["cpu"]}, {made["cores"]} cores,
{bytes_text(made["memory_bytes"])} of memory; {tools}.
"""


def versions(mergekit: str | None) -> dict[str, str]:
    kept = ("python", "otter-lm", "numpy", "safetensors")
    found = {name: v for name, v in provenance()["versions"].items() if name in kept}
    found["coreutils"] = subprocess.check_output(["cp", "--version"], text=True).split("\n")[0]
    if mergekit:
        code = "from importlib.metadata import version as v; print(v('mergekit'), v('torch'))"
        both = subprocess.check_output([mergekit, "-c", code], text=True).split()
        found |= {"mergekit": both[0], "torch (mergekit's)": both[1]}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="a folder to fill, and empty")
    parser.add_argument("--out", type=Path, required=True, help="where .json and .md go")
    parser.add_argument("--mergekit", help="the Python of an environment that has mergekit")
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=1)
    options = parser.parse_args()
    base = options.work / "base"
    try:
        write_base(base, options.layers)
        checkpoint = Checkpoint.open(base)
        load = os.getloadavg()[1]
        rows = measure_all(base, options.work, options.mergekit, options.rounds)
    finally:
        shutil.rmtree(options.work, ignore_errors=True)
    record = {
        "command": f"python -m tests.performance.surgery --layers {options.layers} "
        f"--rounds {options.rounds}" + (" --mergekit PYTHON" if options.mergekit else ""),
        "base_bytes": sum(info.nbytes for info in checkpoint.tensors.values()),
        "largest_tensor_bytes": max(info.nbytes for info in checkpoint.tensors.values()),
        "shards": len(checkpoint.weight_files),
        "rounds": options.rounds,
        "load": load,
        "rows": rows,
        "versions": versions(options.mergekit),
        "provenance": provenance(["tests.performance.surgery"]),
    }
    record["goals"] = judge(record)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.with_suffix(".json").write_text(json.dumps(record, indent=2) + "\n", "utf-8")
    options.out.with_suffix(".md").write_text(page(record), "utf-8")
    print(page(record))


if __name__ == "__main__":
    main()
