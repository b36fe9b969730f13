"""Another scorer over a run's stored samples: nothing is generated again."""

from pathlib import Path

from otter_cli.benchmarks.detox import require_label
from otter_cli.benchmarks.outcome import outcome
from otter_cli.benchmarks.preference import GOLD, require_guides_nothing
from otter_cli.benchmarks.records import Scores
from otter_cli.benchmarks.result import Result
from otter_cli.benchmarks.run_folder import RunFolder
from otter_cli.benchmarks.scorers import Scorer
from otter_cli.benchmarks.scoring import score_samples
from otter_cli.benchmarks.stored import draw, read_run
from otter_cli.core.errors import OtterError

# Which scorer of a benchmark may be another, and the kind that it takes.
ROLES = {"preference": (GOLD, "reward-model"), "detox": ("detoxify", "detoxify")}


def rescore(folder: Path, scorer: Scorer) -> Result:
    """The run's result by `scorer` in place of its judge; scores.jsonl and result.json follow.

    Raises OtterError for a benchmark without a judge, and for a scorer that does not fit it.
    """
    stored = read_run(folder)
    role = _role(stored.result, scorer)
    old, record = stored.result, scorer.record
    with RunFolder.opened(folder, old.settings) as files:
        samples = list(files.samples().values())
        fresh = score_samples({role: scorer}, stored.drawn.prompts, samples)
        scores: Scores = {
            key: {k: v for k, v in kept.items() if not k.startswith(f"{role}.")} | fresh[key]
            for key, kept in files.scores().items()
        }
        drawn = draw(files, old, scores, {**old.scorers, role: record})
        methods = {
            name: outcome(stored.kind, name, method.label, drawn, method.divergences)
            for name, method in old.methods.items()
        }
        result = old.model_copy(
            update={
                "scorers": dict(drawn.scorers),
                "methods": methods,
                "fronts": stored.kind.fronts(drawn),
                "findings": stored.kind.findings(methods),
            }
        )
        files.write_scores(scores)
        files.write_result(result)
    return result


def _role(result: Result, scorer: Scorer) -> str:
    if result.benchmark not in ROLES:
        raise OtterError(
            f"a run of {result.benchmark} has no scorer: its figures are counted",
            hint=f"runs of {' and '.join(ROLES)} have one",
        )
    role, kind = ROLES[result.benchmark]
    if scorer.record.kind != kind:
        raise OtterError(
            f"a run of {result.benchmark} is judged by a {kind}, "
            f"and {scorer.record.name} is a {scorer.record.kind}",
            hint=f"give --scorer {kind}:FOLDER",
        )
    if role == GOLD:
        guides = {
            model.weights: name
            for name, method in result.settings.methods.items()
            for model in method.models
        }
        require_guides_nothing(scorer.record.digest, guides)
    else:
        require_label(scorer)
    return role
