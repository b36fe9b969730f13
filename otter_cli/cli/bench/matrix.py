"""`otter bench matrix`: many settings and seeds by one recipe."""

from pathlib import Path
from typing import Annotated

import typer

from otter_cli.cli.bench.group import AllowPickle, Device, app, option, show_report
from otter_cli.cli.command import Outcome, verb


@verb(
    app,
    example="""\
    otter bench matrix matrix/ablation
    otter bench matrix my-matrix.yaml --out runs/strengths""",
    uses_graft=True,
    computes=True,
)
def matrix(
    recipe: Annotated[str, typer.Argument(help="a YAML file, or a matrix that ships")],
    out: Annotated[
        Path | None, option("--out", "folder of its runs (default: runs/matrix-NAME)", "Output")
    ] = None,
    limit: Annotated[
        int | None,
        option("--limit", "a trial run: this many prompts and training steps, one seed", "Cells"),
    ] = None,
    device: Device = "cpu",
    allow_pickle: AllowPickle = False,
) -> Outcome:
    """Run every combination of a recipe's axes at every seed: train it if the recipe says so, then
    benchmark it in a run folder. The same command again resumes.

    One table and one plot, with intervals over seeds. An ablation is a matrix over insertions.
    """
    from otter_cli.benchmarks.matrix.recipe import load_matrix
    from otter_cli.benchmarks.matrix.run_matrix import run_matrix
    from otter_cli.cli.recipe_files import recipe_path
    from otter_cli.reports.comparisons import matrix_report
    from otter_cli.scorers.detoxify import pickle_allowed

    path = recipe_path(recipe)
    loaded = load_matrix(path)
    if limit is not None:
        loaded = loaded.limited_to(limit)
    folder = out or Path("runs") / f"matrix-{path.stem}"
    with pickle_allowed(allow_pickle):
        result = run_matrix(loaded, path.stem, folder, recipe_path, device)
    return show_report(result, matrix_report(result), folder)
