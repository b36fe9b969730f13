"""`otter bench`: the group of commands, and the options that all of them take."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from otter_cli.cli.command import Outcome, verb_app

if TYPE_CHECKING:
    from rich.console import RenderableType

    from otter_cli.benchmarks.results import ResultFile
    from otter_cli.benchmarks.tasks.assemble import AnyOptions
    from otter_cli.reports.page import Report


app = verb_app(
    help="Compare the insertion with plain decoding and with baselines, all with KV caches. The "
    "same command again resumes: samples in the run folder are not generated again. "
    "--method takes value, vocabulary, args, rad, genarm, dexperts, dexperts-inserted, best-of-n, "
    "early-stop, future, prompt-lookup, draft-model; each may have graft=DIR, signal=NAME, "
    "temperature=T.",
    example="""\
    otter bench preference grafted --prompts p.jsonl --task-head head --reward-model rm --gold gold
    otter bench preference ... --method rad:model=rm,strength=2 --method bon=best-of-n:n=8,top_p=0.9
    otter bench detox grafted --prompts p.jsonl --task-head head --detoxify detoxify-mini
    otter bench speedup grafted --prompts p.jsonl --task-head head
    otter bench lm-eval grafted --tasks blimp_anaphor --include-path my-tasks
    otter bench overhead --shape llama-134m --threads 2
    otter bench report runs/speedup-0123456789
    otter bench compare runs/speedup-0123456789 runs/speedup-9876543210
    otter bench check runs/speedup-0123456789 --expect expectations.yaml""",
)


def run_and_show(options: AnyOptions, out: Path | None) -> Outcome:
    """Run a benchmark, or resume it, and show its report."""
    from otter_cli.benchmarks.results import ExampleTexts
    from otter_cli.benchmarks.runner.run_benchmark import run_benchmark
    from otter_cli.benchmarks.tasks.assemble import assemble
    from otter_cli.core.console import say
    from otter_cli.reports.benchmark import benchmark_report

    say("loading the models")
    finished = run_benchmark(assemble(options), out)
    examples = ExampleTexts.read(finished.folder)
    return show_report(
        finished.result, benchmark_report(finished.result, examples), finished.folder
    )


def show_report(
    result: ResultFile, drawn: Report, folder: Path, *, failed: bool = False
) -> Outcome:
    """Write the report into the result's folder, and show it."""
    from otter_cli.reports.report_files import write_report

    path = write_report(drawn, folder)
    data = {**result.model_dump(mode="json"), "run": folder, "report": path}
    return Outcome(data, view=lambda: _view(drawn, path), exit_code=int(failed))


def _view(report: Report, path: Path) -> RenderableType:
    from rich.console import Group

    from otter_cli.reports.terminal import terminal_page

    return Group(terminal_page(report), "", f"report: {path}")


def option(name: str, help: str, panel: str) -> Any:
    return typer.Option(name, help=help, rich_help_panel=panel)


Device = Annotated[str, option("--device", "cpu, cuda or cuda:1", "Decoding")]
AllowPickle = Annotated[
    bool,
    option(
        "--allow-pickle",
        "load Detoxify files that can run code: give it for files that you trust",
        "Output",
    ),
]
RunFolder = Annotated[
    Path | None,
    option("--out", "run folder (default: runs/NAME-KEY, with a digest of the settings)", "Output"),
]
