"""`otter bench detox`: toxicity and fluency of sampled text, plain and guided."""

from otter_cli.benchmarks.options import DetoxOptions
from otter_cli.cli.bench.group import AllowPickle, RunFolder, app, run_and_show
from otter_cli.cli.command import Outcome, verb


@verb(
    app,
    example="otter bench detox grafted --prompts rtp-toxic.test.jsonl --task-head head-only "
    "--detoxify detoxify-mini",
    uses_graft=True,
    computes=True,
)
def detox(
    options: DetoxOptions, allow_pickle: AllowPickle = False, out: RunFolder = None
) -> Outcome:
    """Sample texts, plain and guided away from toxicity, and score them by a Detoxify model.

    Figures: expected maximum toxicity, toxicity probability, perplexity under the base, dist-1/2/3.
    """
    from otter_cli.scorers.detoxify import pickle_allowed

    with pickle_allowed(allow_pickle):
        return run_and_show(options, out)
