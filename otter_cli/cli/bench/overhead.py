"""`otter bench overhead`: time and memory of an insertion, beside the machine's own bounds."""

from pathlib import Path
from typing import Annotated

from otter_cli.benchmarks.options import OverheadOptions
from otter_cli.cli.bench.group import app, option, show_report
from otter_cli.cli.command import INTERRUPTED, Outcome, verb


@verb(
    app,
    example="""\
    otter bench overhead --shape llama-134m --threads 2
    otter bench overhead grafted --batch 8 --context 512""",
    uses_graft=True,
    computes=True,
)
def overhead(
    options: OverheadOptions,
    out: Annotated[
        Path | None,
        option("--out", "folder of the result (default: runs/overhead-NAME)", "Output"),
    ] = None,
) -> Outcome:
    """Measure prefill, decoding, memory and parameters of a graft over its base's.

    Base and graft take turns, step by step, and their logits are compared bit for bit in the same
    run. Each ratio has its lower bound beside it: bytes and operations by count, at rates measured
    here. Ctrl-C keeps what was measured so far.
    """
    from dataclasses import replace

    from otter_cli.benchmarks.overhead.result import OverheadResult
    from otter_cli.benchmarks.overhead.run_overhead import run_overhead
    from otter_cli.reports.overhead import overhead_report

    def folder(result: OverheadResult) -> Path:
        return out or Path("runs") / f"overhead-{result.settings.subject}"

    result = run_overhead(options, keep=lambda so_far: so_far.write(folder(so_far)))
    result.write(folder(result))
    outcome = show_report(result, overhead_report(result), folder(result))
    return replace(outcome, exit_code=INTERRUPTED) if result.left_out else outcome
