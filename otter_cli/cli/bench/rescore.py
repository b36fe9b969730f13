"""`otter bench rescore`: scores a run's stored samples by another scorer; generates nothing."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from otter_cli.cli.bench.group import AllowPickle, Device, app, option, report_and_show
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
)
def rescore(
    run: Annotated[Path, typer.Argument(help="a finished run of preference or detox")],
    scorer: Annotated[str, option("--scorer", "reward-model:FOLDER or detoxify:FOLDER", "Scorer")],
    device: Device = "cpu",
    allow_pickle: AllowPickle = False,
) -> Outcome:
    """Judge a run's samples by another scorer, in place of its own: nothing is generated again.

    scores.jsonl, result.json and the report are written anew.
    """
    from otter_cli.benchmarks.runner.stored_run import rescore_run as rescored
    from otter_cli.scorers.detoxify import pickle_allowed

    with pickle_allowed(allow_pickle):
        judge = parse_scorer(scorer, device)
    return report_and_show(rescored(run, judge), run)


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
    from otter_cli.scorers.load import load_recorded_reward_model
    from otter_cli.scorers.response_models import RewardModelScorer

    return RewardModelScorer(*load_recorded_reward_model(Path(folder), device=device))
