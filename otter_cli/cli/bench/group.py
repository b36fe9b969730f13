"""`otter bench`: the group of commands, and the options that all of them take."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from otter_cli.cli.command import Outcome, verb_app

if TYPE_CHECKING:
    from rich.console import RenderableType

    from otter_cli.benchmarks.benchmark import Benchmark
    from otter_cli.benchmarks.results import BenchmarkResult, ResultFile
    from otter_cli.reports.page import Report


app = verb_app(
    help="Compare the insertion with plain decoding and baselines, caches on everywhere. The same "
    "command again resumes: what is in the run folder is never generated twice. "
    "--method takes value, vocabulary, args, rad, genarm, dexperts, dexperts-inserted, best-of-n, "
    "early-stop, future, prompt-lookup, draft-model; each with graft=DIR, signal=NAME, "
    "temperature=T where wanted.",
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


def run_and_show(benchmark: Benchmark, out: Path | None) -> Outcome:
    from otter_cli.benchmarks.runner.run_benchmark import run_benchmark

    finished = run_benchmark(benchmark, out)
    return report_and_show(finished.result, finished.folder)


def report_and_show(result: BenchmarkResult, folder: Path) -> Outcome:
    """Draws a run's report again."""
    from otter_cli.reports.benchmark import benchmark_report

    return show_report(result, benchmark_report(result), folder)


def show_report(
    result: ResultFile, drawn: Report, folder: Path, *, failed: bool = False
) -> Outcome:
    """Writes the report beside the result, and shows it."""
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


Folder = Annotated[Path, typer.Argument(help="the grafted folder")]
Prompts = Annotated[Path, option("--prompts", "jsonl, csv or txt, plain or .gz", "Prompts")]
Column = Annotated[str | None, option("--column", "where the prompt stands", "Prompts")]
Template = Annotated[str, option("--template", "what {text} is put into", "Prompts")]
Chat = Annotated[
    bool, option("--chat", "messages, or what a user says: by the base's template", "Prompts")
]
Limit = Annotated[
    int | None, option("--limit", "only so many prompts, drawn across categories", "Prompts")
]
LimitSeed = Annotated[
    int, option("--limit-seed", "which prompts --limit draws, for every --seed", "Prompts")
]
TaskHead = Annotated[
    Path, option("--task-head", "the control: `otter train --baseline head`", "Methods")
]
Signal = Annotated[str, option("--signal", "the signal's name in both folders", "Methods")]
Strength = Annotated[float, option("--strength", "weight of the guide's score", "Methods")]
HeadStrength = Annotated[
    float | None, option("--head-strength", "the task head's, if another", "Methods")
]
Candidates = Annotated[int, option("--candidates", "tokens that the guide scores", "Methods")]
Methods = Annotated[
    list[str] | None,
    option(
        "--method",
        "another, again for more: [NAME=]KIND:key=value,... such as rad:model=DIR,strength=2",
        "Methods",
    ),
]
Samples = Annotated[int, option("--samples", "responses a prompt", "Decoding")]
Batch = Annotated[int, option("--batch", "responses to one prompt at a time", "Decoding")]
PromptsPerBatch = Annotated[
    int, option("--together", "prompts that share a batch: faster, other rounding", "Decoding")
]
Temperature = Annotated[float, option("--temperature", "of all methods; 0: greedy", "Decoding")]
NewTokens = Annotated[int, option("--max-new-tokens", "length of a response", "Decoding")]
Seed = Annotated[int, option("--seed", "of sampling, for every method the same", "Decoding")]
Device = Annotated[str, option("--device", "cpu, cuda, cuda:1", "Decoding")]
AllowPickle = Annotated[
    bool,
    option(
        "--allow-pickle",
        "a Detoxify file that holds code may run that code: trusted ones",
        "Output",
    ),
]
RunFolder = Annotated[
    Path | None,
    option("--out", "run folder; if left out, runs/NAME-KEY, a digest of the settings", "Output"),
]
