"""`otter bench rescore`: stored samples, another judge."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from otter_cli.cli.app import Outcome, verb
from otter_cli.cli.bench.app import app
from otter_cli.cli.bench.options import AllowPickle, Device, option
from otter_cli.cli.bench.show import report_and_show
from otter_cli.core.errors import OtterError

if TYPE_CHECKING:
    from otter_cli.benchmarks.scorers import Scorer


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
    from otter_cli.benchmarks.rescore import rescore as rescored
    from otter_cli.scorers.detoxify import pickle_allowed

    with pickle_allowed(allow_pickle):
        judge = _scorer(scorer, device)
    return report_and_show(rescored(run, judge), run)


def _scorer(text: str, device: str) -> "Scorer":
    kind, _, folder = text.partition(":")
    if kind not in ("reward-model", "detoxify") or not folder:
        raise OtterError(
            f"--scorer {text!r} is no KIND:FOLDER",
            hint="reward-model:FOLDER for preference, detoxify:FOLDER for detox",
        )
    if kind == "detoxify":
        from otter_cli.benchmarks.scorers.detoxify import DetoxifyScorer

        return DetoxifyScorer(Path(folder), device=device)
    from otter_cli.benchmarks.models import load_reward_model
    from otter_cli.benchmarks.scorers.reward_model import RewardModelScorer

    return RewardModelScorer(*load_reward_model(Path(folder), device=device))
