"""`otter bench`: methods compared on the same prompts, in a run folder that resumes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from otter_cli.cli.app import Outcome, verb, verb_app

if TYPE_CHECKING:
    from rich.console import RenderableType

    from otter_cli.benchmarks.benchmark import Benchmark, Setting
    from otter_cli.benchmarks.models import Grafted
    from otter_cli.benchmarks.result import Result
    from otter_cli.decoding import Sampling
    from otter_cli.reports import Report

app = verb_app(
    help="Compare the insertion with plain decoding and baselines, caches on everywhere. The same "
    "command again resumes: what is in the run folder is never generated twice.",
    example="""\
    otter bench preference grafted --prompts p.jsonl --task-head head --reward-model rm --gold gold
    otter bench detox grafted --prompts p.jsonl --task-head head --detoxify detoxify-mini
    otter bench speedup grafted --prompts p.jsonl --task-head head
    otter bench report runs/speedup-0123456789""",
)


def _option(name: str, help: str, panel: str) -> Any:
    return typer.Option(name, help=help, rich_help_panel=panel)


Folder = Annotated[Path, typer.Argument(help="the grafted folder")]
Prompts = Annotated[Path, _option("--prompts", "jsonl, csv or txt, plain or .gz", "Prompts")]
Column = Annotated[str | None, _option("--column", "where the prompt stands", "Prompts")]
Template = Annotated[str, _option("--template", "what {text} is put into", "Prompts")]
Limit = Annotated[int | None, _option("--limit", "only the first so many prompts", "Prompts")]
TaskHead = Annotated[
    Path, _option("--task-head", "the control: `otter train --baseline head`", "Methods")
]
Signal = Annotated[str, _option("--signal", "the signal's name in both folders", "Methods")]
Strength = Annotated[float, _option("--strength", "weight of the guide's score", "Methods")]
HeadStrength = Annotated[
    float | None, _option("--head-strength", "the task head's, if another", "Methods")
]
Candidates = Annotated[int, _option("--candidates", "tokens that the guide scores", "Methods")]
NewTokens = Annotated[int, _option("--max-new-tokens", "length of a response", "Decoding")]
Seed = Annotated[int, _option("--seed", "of sampling, for every method the same", "Decoding")]
Device = Annotated[str, _option("--device", "cpu, cuda, cuda:1", "Decoding")]
Out = Annotated[
    Path | None,
    _option("--out", "run folder; if left out, runs/NAME-KEY, a digest of the settings", "Output"),
]


@verb(
    app,
    example="otter bench preference grafted --prompts prompts.jsonl --task-head head-only "
    "--reward-model separate --gold gold",
)
def preference(
    folder: Folder,
    prompts: Prompts,
    task_head: TaskHead,
    reward_model: Annotated[
        Path, _option("--reward-model", "guides ARGS: `otter train --baseline separate`", "Methods")
    ],
    gold: Annotated[Path, _option("--gold", "a reward model that guides nothing", "Methods")],
    column: Column = None,
    template: Template = "{text}",
    limit: Limit = None,
    signal: Signal = "reward",
    strength: Strength = 1.5,
    head_strength: HeadStrength = None,
    args_strength: Annotated[
        float | None, _option("--args-strength", "the reward model's, if another", "Methods")
    ] = None,
    candidates: Candidates = 10,
    max_new_tokens: NewTokens = 64,
    seed: Seed = 0,
    device: Device = "cpu",
    out: Out = None,
) -> Outcome:
    """Greedy responses, plain and guided by the insertion, a task head and ARGS.

    Judged by a gold reward that guided nothing; diversity, time per token, passes and memory.
    """
    from otter_cli.benchmarks import assemble
    from otter_cli.decoding import Sampling

    grafts, setting = _prepare(
        (folder, task_head, signal, device),
        (prompts, column, template, limit),
        Sampling(max_new_tokens=max_new_tokens),
        seed=seed,
    )
    guidance = assemble.Guidance(signal, strength, candidates, head_strength, args_strength)
    return _run(
        assemble.preference(grafts, setting, guidance, reward_model=reward_model, gold=gold), out
    )


@verb(
    app,
    example="otter bench detox grafted --prompts rtp-toxic.test.jsonl --task-head head-only "
    "--detoxify detoxify-mini",
)
def detox(
    folder: Folder,
    prompts: Prompts,
    task_head: TaskHead,
    detoxify: Annotated[
        Path, _option("--detoxify", "a Detoxify checkpoint's folder: a pickle, trusted", "Methods")
    ],
    column: Column = None,
    template: Template = "{text}",
    limit: Limit = None,
    signal: Signal = "toxicity",
    strength: Strength = -4.0,
    head_strength: HeadStrength = None,
    candidates: Candidates = 20,
    samples: Annotated[int, _option("--samples", "continuations a prompt", "Decoding")] = 25,
    batch: Annotated[int, _option("--batch", "continuations at a time", "Decoding")] = 25,
    temperature: Annotated[float, _option("--temperature", "of all methods", "Decoding")] = 1.0,
    top_p: Annotated[float, _option("--top-p", "nucleus, of all methods", "Decoding")] = 0.9,
    max_new_tokens: NewTokens = 20,
    seed: Seed = 0,
    device: Device = "cpu",
    out: Out = None,
) -> Outcome:
    """Sampled continuations, plain and guided away from toxicity, read by Detoxify.

    Expected maximum toxicity, toxicity probability, perplexity under the base, dist-1/2/3.
    """
    from otter_cli.benchmarks import assemble
    from otter_cli.decoding import Sampling

    grafts, setting = _prepare(
        (folder, task_head, signal, device),
        (prompts, column, template, limit),
        # Plain decoding draws from as many candidates as a guide does: else fewer candidates,
        # and not the guide, would make the difference.
        Sampling(max_new_tokens, temperature, top_k=candidates, top_p=top_p),
        seed=seed,
        repeats=samples,
        batch=batch,
    )
    guidance = assemble.Guidance(signal, strength, candidates, head_strength)
    return _run(assemble.detox(grafts, setting, guidance, detoxify=detoxify), out)


@verb(
    app,
    example="otter bench speedup grafted --prompts spec-bench.jsonl --task-head head-only",
)
def speedup(
    folder: Folder,
    prompts: Prompts,
    task_head: TaskHead,
    column: Column = None,
    template: Template = "{text}",
    limit: Limit = None,
    signal: Signal = "future",
    max_new_tokens: NewTokens = 64,
    seed: Seed = 0,
    device: Device = "cpu",
    out: Out = None,
) -> Outcome:
    """Greedy decoding with drafts: future tokens, a task head's (Medusa-1) and prompt lookup.

    Speed-up, tokens per step, acceptance by position, and whether the output stays plain's.
    """
    from otter_cli.benchmarks import assemble
    from otter_cli.decoding import Sampling

    grafts, setting = _prepare(
        (folder, task_head, signal, device),
        (prompts, column, template, limit),
        Sampling(max_new_tokens=max_new_tokens),
        seed=seed,
    )
    return _run(assemble.speedup(grafts, setting, signal=signal), out)


@verb(app, example="otter bench report runs/speedup-0123456789")
def report(
    run: Annotated[Path, typer.Argument(help="a run folder with a result.json")],
) -> Outcome:
    """Draw a run's report again from its result.json."""
    from otter_cli.benchmarks.result import Result

    return _reported(Result.read(run), run)


def _prepare(
    models: tuple[Path, Path, str, str],
    prompts: tuple[Path, str | None, str, int | None],
    sampling: Sampling,
    **shared: int,
) -> tuple[tuple[Grafted, Grafted], Setting]:
    """Loads the insertion and its control, and gives both the same prompts."""
    from otter_cli.benchmarks.benchmark import Setting
    from otter_cli.benchmarks.models import load_pair
    from otter_cli.benchmarks.prompts import PromptFile, load_prompts

    grafts = load_pair(*models)
    loaded, record = load_prompts(
        PromptFile(*prompts),
        grafts[0].tokenizer,
        positions=grafts[0].model.shape.max_positions,
        new_tokens=sampling.max_new_tokens,
    )
    return grafts, Setting(loaded, record, sampling, **shared)


def _run(benchmark: Benchmark, out: Path | None) -> Outcome:
    from otter_cli.benchmarks.run import run

    finished = run(benchmark, out)
    return _reported(finished.result, finished.folder)


def _reported(result: Result, folder: Path) -> Outcome:
    """Writes the report beside the result, and shows it."""
    from otter_cli.reports.benchmark import benchmark_report
    from otter_cli.reports.files import write_report

    drawn = benchmark_report(result)
    path = write_report(drawn, folder)
    data = {**result.model_dump(mode="json"), "run": folder, "report": path}
    return Outcome(data, view=lambda: _view(drawn, path))


def _view(report: Report, path: Path) -> RenderableType:
    from rich.console import Group

    from otter_cli.reports import terminal_page

    return Group(terminal_page(report), "", f"report: {path}")
