"""`otter bench lm-eval`: the harness's tasks on base and graft, document by document."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from otter_cli.cli.bench.group import Device, Folder, RunFolder, app, option
from otter_cli.cli.command import Outcome, verb
from otter_cli.core.errors import OtterError

if TYPE_CHECKING:
    from otter_cli.benchmarks.lm_eval.run_lm_eval import LmEvalOptions


@verb(
    app,
    name="lm-eval",
    example="""\
    otter bench lm-eval grafted --tasks blimp_anaphor,hellaswag --include-path my-tasks
    otter bench lm-eval grafted --tasks gsm8k --guide reward --strength 0.5""",
    uses_graft=True,
)
def lm_eval(
    folder: Folder,
    tasks: Annotated[str, option("--tasks", "the harness's names, by commas", "Tasks")],
    include_path: Annotated[
        Path | None,
        option("--include-path", "a folder of task files; only they are known then", "Tasks"),
    ] = None,
    limit: Annotated[
        int | None, option("--limit", "only so many documents of each, drawn", "Tasks")
    ] = None,
    limit_seed: Annotated[
        int, option("--limit-seed", "which documents --limit draws, for every --seed", "Tasks")
    ] = 0,
    base: Annotated[
        Path | None, option("--base", "the base; default: the one inside the graft", "Models")
    ] = None,
    guide: Annotated[
        str | None, option("--guide", "a signal: guided decoding as a third model", "Models")
    ] = None,
    strength: Annotated[float, option("--strength", "of the guide", "Models")] = 1.0,
    candidates: Annotated[
        int, option("--candidates", "tokens that the guide scores", "Models")
    ] = 10,
    dtype: Annotated[
        str | None, option("--dtype", "float32, bfloat16, float16; default: the file's", "Models")
    ] = None,
    batch: Annotated[int, option("--batch", "requests at a time", "Decoding")] = 16,
    seed: Annotated[int, option("--seed", "of few-shot examples and sampling", "Decoding")] = 0,
    device: Device = "cpu",
    out: RunFolder = None,
) -> Outcome:
    """The tasks of lm-evaluation-harness on a graft and on its base, by the harness's own code.

    Every document's log-likelihoods and texts are compared to the last bit: exit 1 where one
    differs.
    """
    from otter_cli.benchmarks.lm_eval.documents import LmEvalTasks
    from otter_cli.benchmarks.lm_eval.run_lm_eval import LmEvalGuidance, LmEvalOptions

    names = tuple(name for name in tasks.split(",") if name)
    if dtype not in (None, "float32", "bfloat16", "float16"):
        raise OtterError(f"--dtype {dtype!r}", hint="float32 | bfloat16 | float16")
    if include_path is not None and not include_path.is_dir():
        raise OtterError(f"--include-path {include_path} is no folder", hint="one of task files")
    asked = LmEvalOptions(
        folder,
        base,
        LmEvalTasks(names, include_path, limit, seed, limit_seed),
        batch,
        dtype,
        device,
        LmEvalGuidance(signal=guide, strength=strength, candidates=candidates) if guide else None,
    )
    return _run_and_show(asked, out)


def _run_and_show(asked: LmEvalOptions, out: Path | None) -> Outcome:
    from otter_cli.benchmarks.lm_eval.run_lm_eval import run_lm_eval
    from otter_cli.cli.bench.group import show_report
    from otter_cli.reports.comparisons import lm_eval_report

    result, folder = run_lm_eval(asked, out)
    return show_report(result, lm_eval_report(result), folder, failed=not result.holds)
