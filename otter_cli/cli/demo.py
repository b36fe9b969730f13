"""`otter demo`: the whole job on the tiny base that ships with the package."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from otter_cli.cli.app import Outcome, verb, verb_app

if TYPE_CHECKING:
    from rich.console import RenderableType

    from otter_cli.demo.run import Demo

app = verb_app()


@verb(app, example="otter demo\notter demo runs/demo --seed 1")
def demo(
    folder: Annotated[Path, typer.Argument(help="run folder; what is there is not done again")] = (
        Path("runs/demo")
    ),
    seed: Annotated[int, typer.Option("--seed", help="of the synthetic world")] = 0,
    set: Annotated[
        list[str] | None,
        typer.Option("--set", help="KEY=VALUE over the recipe demo/signals, again for more"),
    ] = None,
) -> Outcome:
    """Graft, train, verify and benchmark a tiny base on a synthetic world, in a few minutes.

    Ends in a report. A second call goes on where the first one stopped.
    """
    from otter_cli.cli.recipe_files import find_recipe
    from otter_cli.demo.report import write_demo_report
    from otter_cli.demo.run import run_demo

    recipe = find_recipe("demo/signals").path
    found = run_demo(folder, seed=seed, recipe=recipe, overrides=tuple(set or ()))
    path = write_demo_report(found)
    data = {
        "graft": found.price.record(),
        "train": {name: vars(run) for name, run in found.trained.items()},
        "verify": {"verdict": found.verdict.name, **_counts(found)},
        "bench": {name: result.model_dump(mode="json") for name, result in found.results.items()},
        "report": path,
        "seconds": found.seconds,
        "synthetic": True,
    }
    exit_code = 0 if found.verdict.passes("construction") else 1
    return Outcome(data, view=lambda: _view(found, path), exit_code=exit_code)


def _counts(found: Demo) -> dict[str, int]:
    report = found.verification
    return {
        "cases": len(report.results),
        "equal": report.equal,
        "control": report.control,
        "poison": report.poison,
    }


def _view(found: Demo, path: Path) -> RenderableType:
    from rich.console import Group

    from otter_cli.demo.report import demo_report
    from otter_cli.reports import terminal_page

    return Group(terminal_page(demo_report(found)), "", f"report: {path}")
