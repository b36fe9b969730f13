"""`otter bench detection`: a signal as a monitor of text while it is written."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from otter_cli.cli.bench.group import (
    Device,
    Folder,
    Limit,
    LimitSeed,
    RunFolder,
    Signal,
    app,
    option,
    run_and_show,
)
from otter_cli.cli.command import Outcome, verb
from otter_cli.cli.recipe_files import recipe_path


@verb(
    app,
    example="""\
    otter bench detection grafted --recipe detox/davidson --monitor head=head-only
    otter bench detection grafted --pairs paradetox.test.jsonl.gz --classifier separate""",
    uses_graft=True,
)
def detection(
    folder: Folder,
    recipe: Annotated[
        str | None, option("--recipe", "whose held-out rows are read, one label each", "Texts")
    ] = None,
    pairs: Annotated[
        Path | None, option("--pairs", "chosen texts and rejected ones, which offend", "Texts")
    ] = None,
    data: Annotated[
        Path | None, option("--data", "folder of the recipe's data files", "Texts")
    ] = None,
    limit: Limit = None,
    limit_seed: LimitSeed = 0,
    signal: Signal = "toxicity",
    monitor: Annotated[
        list[str] | None,
        option("--monitor", "NAME=FOLDER, a task head, a probe, another graft; again", "Methods"),
    ] = None,
    classifier: Annotated[
        Path | None, option("--classifier", "`otter train --baseline separate`", "Methods")
    ] = None,
    device: Device = "cpu",
    out: RunFolder = None,
) -> Outcome:
    """Scores at every token of labelled text: who flags it, how early, and at what cost.

    AUROC, F1, share flagged at 1 % false alarms, on time (before the offending span ends; without
    spans, the text), tokens read until then, what stopping at a threshold saves and loses.
    """
    from otter_cli.benchmarks.tasks.options import DetectionOptions

    asked = DetectionOptions(
        folder=folder,
        recipe=None if recipe is None else recipe_path(recipe),
        pairs=pairs,
        data=data,
        limit=limit,
        limit_seed=limit_seed,
        signal=signal,
        monitor=tuple(monitor or ()),
        classifier=classifier,
        device=device,
    )
    return run_and_show(asked.benchmark(), out)
