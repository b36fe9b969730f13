"""A benchmark from start to result, in its folder: collect, score, measure, write."""

import resource
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from otter_cli.benchmarks.benchmark import Benchmark
from otter_cli.benchmarks.collect import collect
from otter_cli.benchmarks.drawn import Drawn
from otter_cli.benchmarks.outcome import outcome
from otter_cli.benchmarks.result import Result
from otter_cli.benchmarks.run_folder import RunFolder
from otter_cli.benchmarks.scoring import scored_rows
from otter_cli.core.console import say
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
        folder.write_prompts(benchmark.setting.prompts)
        collect(benchmark, folder, folder.add_session(_session()))
        rows = scored_rows(benchmark, folder)
        drawn = Drawn(
            prompts=tuple(benchmark.setting.prompts),
            rows=rows,
            weights={name: method.weights for name, method in benchmark.methods.items()},
            methods=settings.methods,
            sampling=settings.sampling,
            scorers={role: scorer.record for role, scorer in benchmark.scorers.items()},
        )
        methods = {
            name: outcome(
                type(benchmark), name, method.label, drawn, benchmark.divergences(name, rows)
            )
            for name, method in benchmark.methods.items()
        }
        result = Result(
            benchmark=benchmark.name,
            key=settings.key,
            settings=settings,
            scorers=dict(drawn.scorers),
            methods=methods,
            fronts=benchmark.fronts(drawn),
            findings=benchmark.findings(methods),
            warnings=benchmark.warnings(),
            sessions=folder.sessions(),
            process_memory=_peak_memory(),
        )
        folder.write_result(result)
    return Finished(path, result)


def _session() -> dict[str, Any]:
    import torch

    return {**provenance(), "threads": torch.get_num_threads()}


def _peak_memory() -> int:
    # macOS counts bytes here, Linux kilobytes.
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
