"""SIGKILL at random moments of benchmark runs. Each run is resumed, and its samples.jsonl is
compared with that of an uninterrupted run.

`make test-bench-kill` writes results/robustness/bench-kills.json.
"""

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
from otter_cli.decoding.sampling import Sampling
from tests.support.benchmark_models import BenchmarkModels, write_benchmark_models
from tests.support.checkpoints import write_checkpoint
from tests.support.kills import killed_after, write_counts
from tests.unit.benchmarks.benchmark_runs import setting

# Kills per run. Each finds the run nearer to its end than the one before.
KILLS_PER_RUN = 4


def sampled_run(models: BenchmarkModels) -> Detox:
    """A real benchmark: sampled text by three methods, scored by a classifier."""
    grafts = load_graft_and_task_head(models.graft, models.head, "toxicity")
    sampling = Sampling(max_new_tokens=10, temperature=1.0, top_k=5)
    shared = setting(models, grafts, sampling, samples_per_prompt=6, batch=2)
    guidance = Guidance(signal="toxicity", strength=-3.0, candidates=5)
    return assemble_detox(grafts, shared, guidance, detoxify=models.detoxify)


def kill_runs(
    models: BenchmarkModels, folder: Path, kills: int, draw: random.Random
) -> dict[str, Any]:
    """Kills running processes at least `kills` times. Raises AssertionError if the samples of a run
    do not end as those of an uninterrupted run, byte for byte."""
    benchmark = sampled_run(models)
    whole = (run_benchmark(benchmark, folder / "whole").folder / "samples.jsonl").read_bytes()
    # The first run warmed this process up. The forked ones take as long as a second run.
    began = time.monotonic()
    run_benchmark(benchmark, folder / "warm")
    duration = time.monotonic() - began
    counts: Counter[str] = Counter()
    written: Counter[int] = Counter()
    while counts["killed"] < kills:
        run_folder = folder / f"run-{counts['runs']}"
        work = partial(run_benchmark, benchmark, run_folder)
        for _ in range(KILLS_PER_RUN):
            status = killed_after(draw.uniform(0.02, 0.6) * duration, work)
            assert status in (0, SIGKILL), status
            counts["killed" if status else "finished before it was"] += 1
            path = run_folder / "samples.jsonl"
            samples_so_far = path.read_bytes() if path.exists() else b""
            # At most the last line is cut. All others are final.
            assert whole.startswith(samples_so_far)
            written[samples_so_far.count(b"\n")] += 1
        resumed = run_benchmark(benchmark, run_folder)
        assert (run_folder / "samples.jsonl").read_bytes() == whole
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
        models = write_benchmark_models(folder / "base", folder)
        counts = kill_runs(models, folder, kills, random.Random())
    write_counts(counts, to, "test-bench-kill")


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
