"""`otter bench rescore`: scores a run's stored samples by another scorer; generates nothing."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from otter_cli.cli.bench.group import AllowPickle, Device, app, option, show_report
from otter_cli.cli.command import Outcome, verb
from otter_cli.core.errors import OtterError

if TYPE_CHECKING:
    from otter_cli.scorers.scorer import Scorer


@verb(
    app,
    example="""\
    otter bench rescore runs/preference-0123456789 --scorer reward-model:gold
    otter bench rescore runs/detox-0123456789 --scorer detoxify:detoxify-unbiased""",
    uses_graft=True,
    computes=True,
)
def rescore(
    run: Annotated[Path, typer.Argument(help="a finished run of preference or detox")],
    scorer: Annotated[str, option("--scorer", "reward-model:FOLDER or detoxify:FOLDER", "Scorer")],
    device: Device = "cpu",
    allow_pickle: AllowPickle = False,
) -> Outcome:
    """Score a run's samples by another scorer, which replaces its own; nothing is generated.

    scores.jsonl, result.json and the report are written again.
    """
    from otter_cli.benchmarks.results import ExampleTexts
    from otter_cli.benchmarks.runner.stored_run import rescore_run
    from otter_cli.reports.benchmark import benchmark_report
    from otter_cli.scorers.detoxify import pickle_allowed

    with pickle_allowed(allow_pickle):
        judge = parse_scorer(scorer, device)
    result = rescore_run(run, judge)
    return show_report(result, benchmark_report(result, ExampleTexts.read(run)), run)


def parse_scorer(text: str, device: str) -> "Scorer":
    kind, _, folder = text.partition(":")
    if kind not in ("reward-model", "detoxify") or not folder:
        raise OtterError(
            f"--scorer {text!r} is no KIND:FOLDER",
            hint="reward-model:FOLDER for preference, detoxify:FOLDER for detox",
        )
    if kind == "detoxify":
        from otter_cli.scorers.detoxify import DetoxifyScorer

        return DetoxifyScorer(Path(folder), device=device)
    from otter_cli.scorers.load import load_reward_model
    from otter_cli.scorers.response_models import RewardModelScorer

    return RewardModelScorer(*load_reward_model(Path(folder), device=device))
