"""`otter bench detection`: a signal as a monitor of text while it is written."""

from otter_cli.benchmarks.options import DetectionOptions
from otter_cli.cli.bench.group import RunFolder, app, run_and_show
from otter_cli.cli.command import Outcome, verb
from otter_cli.cli.recipe_files import recipe_path


@verb(
    app,
    example="""\
    otter bench detection grafted --recipe detox/davidson --monitor head=head-only
    otter bench detection grafted --pairs paradetox.test.jsonl.gz --classifier separate""",
    uses_graft=True,
    computes=True,
)
def detection(options: DetectionOptions, out: RunFolder = None) -> Outcome:
    """Score every token of labelled texts: which monitor flags them, how early, at what cost.

    AUROC, F1, share flagged at 1 % false alarms, share flagged on time (before the offending span
    ends, or the text where spans are unknown), tokens read until then, and the tokens that stopping
    at a threshold saves and loses.
    """
    if options.recipe is not None:
        recipe = recipe_path(str(options.recipe))
        options = options.model_copy(update={"recipe": recipe})
    return run_and_show(options, out)
