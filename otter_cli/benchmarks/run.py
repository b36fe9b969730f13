"""A benchmark from start to result, in its folder: collect, score, measure, write."""

import resource
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from otter_cli.benchmarks.benchmark import PLAIN, Benchmark
from otter_cli.benchmarks.collect import collect
from otter_cli.benchmarks.estimates import Estimate, estimate
from otter_cli.benchmarks.measures import Measures, cache_bytes
from otter_cli.benchmarks.metrics.catalog import describe
from otter_cli.benchmarks.records import Rows
from otter_cli.benchmarks.result import Memory, MethodResult, Result
from otter_cli.benchmarks.run_folder import RunFolder
from otter_cli.benchmarks.scoring import scored_rows
from otter_cli.core.console import say
from otter_cli.core.intervals import difference
from otter_cli.core.provenance import provenance


@dataclass(frozen=True)
class Finished:
    """A run's folder and its outcome."""

    folder: Path
    result: Result


def run(benchmark: Benchmark, out: Path | None = None) -> Finished:
    """Runs, or resumes, in `out` or in runs/NAME-KEY. Raises OtterError."""
    settings = benchmark.settings()
    path = out or Path("runs") / f"{benchmark.name}-{settings.key[:10]}"
    say(f"run folder: {path}")
    with RunFolder.opened(path, settings) as folder:
        collect(benchmark, folder, folder.add_session(_session()))
        rows = scored_rows(benchmark, folder)
        methods = {name: _outcome(benchmark, name, rows) for name in benchmark.methods}
        result = Result(
            benchmark=benchmark.name,
            key=settings.key,
            settings=settings,
            scorers={role: scorer.record for role, scorer in benchmark.scorers.items()},
            methods=methods,
            findings=benchmark.findings(methods),
            sessions=folder.sessions(),
            process_memory=_peak_memory(),
        )
        folder.write_result(result)
    return Finished(path, result)


def _outcome(benchmark: Benchmark, name: str, rows: dict[str, Rows]) -> MethodResult:
    method, prompts = benchmark.methods[name], len(benchmark.setting.prompts)
    measures = benchmark.measures(name, rows)
    plain: Measures = {} if name == PLAIN else benchmark.measures(PLAIN, rows)
    return MethodResult(
        label=method.label,
        metrics={
            metric: estimate(m, prompts, f"{metric} of {name}") for metric, m in measures.items()
        },
        against_plain=_differences(measures, plain, prompts),
        memory=Memory(weights=method.weights, caches=int(cache_bytes(rows[name]).max())),
        divergences=benchmark.divergences(name, rows),
    )


def _differences(measures: Measures, plain: Measures, prompts: int) -> dict[str, Estimate]:
    """Method less plain, on the same resamples of the prompts."""
    shared = [metric for metric in measures if metric in plain and not describe(metric).relative]
    return {
        metric: estimate(
            difference(measures[metric], plain[metric]), prompts, f"difference in {metric}"
        )
        for metric in shared
    }


def _session() -> dict[str, Any]:
    import torch

    return {**provenance(), "threads": torch.get_num_threads()}


def _peak_memory() -> int:
    # macOS counts bytes here, Linux kilobytes.
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
