"""`otter bench lm-eval`: the harness's tasks on base and graft, document by document."""

from otter_cli.benchmarks.options import LmEvalOptions
from otter_cli.cli.bench.group import RunFolder, app, show_report
from otter_cli.cli.command import Outcome, verb


@verb(
    app,
    name="lm-eval",
    example="""\
    otter bench lm-eval grafted --tasks blimp_anaphor,hellaswag --include-path my-tasks
    otter bench lm-eval grafted --tasks gsm8k --guide reward --strength 0.5""",
    uses_graft=True,
    computes=True,
)
def lm_eval(options: LmEvalOptions, out: RunFolder = None) -> Outcome:
    """Run tasks of lm-evaluation-harness on a graft and on its base, by the harness's own code.

    Log-likelihoods and texts are compared bit for bit, document by document. The exit code is 1
    where one differs.
    """
    from otter_cli.benchmarks.lm_eval.run_lm_eval import run_lm_eval
    from otter_cli.reports.comparisons import lm_eval_report

    result, folder = run_lm_eval(options, out)
    return show_report(result, lm_eval_report(result), folder, failed=not result.holds)
