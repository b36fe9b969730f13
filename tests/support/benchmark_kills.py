"""SIGKILL at random moments of benchmark runs, each resumed, samples.jsonl held against that of a
run that nothing stopped. `make test-bench-kill` writes results/robustness/bench-kills.json.
"""

import json
import random
import sys
import tempfile
import time
from collections import Counter
from functools import partial
from pathlib import Path
from signal import SIGKILL
from typing import Any

from otter_cli.benchmarks.model_pool import load_graft_and_task_head
from otter_cli.benchmarks.options import Guidance
from otter_cli.benchmarks.runner.run_benchmark import run_benchmark
from otter_cli.benchmarks.tasks.assemble import assemble_detox
from otter_cli.benchmarks.tasks.detox import Detox
from otter_cli.core.provenance import provenance
from otter_cli.decoding.sampling import Sampling
from tests.support.benchmark_models import BenchmarkModels, write_benchmark_models
from tests.support.checkpoints import write_checkpoint
from tests.support.training_kills import killed_after
from tests.unit.benchmarks.benchmark_runs import setting

# A run takes so many of them: the next one finds it nearer to its end.
KILLS_PER_RUN = 4


def sampled_run(contestants: BenchmarkModels) -> Detox:
    """A real one: drawn text by three methods, scored by a classifier."""
    grafts = load_graft_and_task_head(contestants.graft, contestants.head, "toxicity")
    drawn = Sampling(max_new_tokens=10, temperature=1.0, top_k=5)
    shared = setting(contestants, grafts, drawn, samples_per_prompt=6, batch=2)
    guidance = Guidance(signal="toxicity", strength=-3.0, candidates=5)
    return assemble_detox(grafts, shared, guidance, detoxify=contestants.detoxify)


def kill_runs(
    contestants: BenchmarkModels, folder: Path, kills: int, draw: random.Random
) -> dict[str, Any]:
    """At least `kills` kills that met a living run. Raises AssertionError where a run's samples do
    not end as those of a run that nothing stopped, byte for byte."""
    benchmark = sampled_run(contestants)
    whole = (run_benchmark(benchmark, folder / "whole").folder / "samples.jsonl").read_bytes()
    # The first run warmed this process up: the forked ones take as long as a second.
    began = time.monotonic()
    run_benchmark(benchmark, folder / "warm")
    duration = time.monotonic() - began
    counts: Counter[str] = Counter()
    written: Counter[int] = Counter()
    while counts["killed"] < kills:
        here = folder / f"run-{counts['runs']}"
        work = partial(run_benchmark, benchmark, here)
        for _ in range(KILLS_PER_RUN):
            status = killed_after(draw.uniform(0.02, 0.6) * duration, work)
            assert status in (0, SIGKILL), status
            counts["killed" if status else "finished before it was"] += 1
            path = here / "samples.jsonl"
            there = path.read_bytes() if path.exists() else b""
            # At most the line in flight is torn; every whole one is as it will stay.
            assert whole.startswith(there)
            written[there.count(b"\n")] += 1
        resumed = run_benchmark(benchmark, here)
        assert (here / "samples.jsonl").read_bytes() == whole
        assert resumed.result.methods["plain"].metrics["tokens"].n == len(benchmark.setting.prompts)
        counts["runs"] += 1
    lines = {str(count): written[count] for count in sorted(written)}
    samples = whole.count(b"\n")
    return {
        **counts, "byte-equal runs": counts["runs"], "samples a run": samples,
        "kills by the samples written": lines,
    }  # fmt: skip


def main(kills: int, to: Path) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_checkpoint(folder / "base", "llama")
        contestants = write_benchmark_models(folder / "base", folder)
        found = kill_runs(contestants, folder, kills, random.Random())
    to.parent.mkdir(parents=True, exist_ok=True)
    record = {**found, "provenance": provenance(["make", "test-bench-kill"])}
    to.write_text(json.dumps(record, indent=2) + "\n")
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
