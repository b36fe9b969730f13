"""`otter bench lm-eval`: the harness's tasks on base and graft, document by document."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from otter_cli.cli.app import Outcome, verb
from otter_cli.cli.bench.app import app
from otter_cli.cli.bench.options import Device, Folder, Out, option
from otter_cli.core.errors import OtterError

if TYPE_CHECKING:
    from otter_cli.benchmarks.lm_eval.run import Asked


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
    out: Out = None,
) -> Outcome:
    """The tasks of lm-evaluation-harness on a graft and on its base, by the harness's own code.

    Every document's log-likelihoods and texts are compared to the last bit: exit 1 where one
    differs.
    """
    from otter_cli.benchmarks.lm_eval.documents import Tasks
    from otter_cli.benchmarks.lm_eval.result import Guidance
    from otter_cli.benchmarks.lm_eval.run import Asked

    names = tuple(name for name in tasks.split(",") if name)
    if dtype not in (None, "float32", "bfloat16", "float16"):
        raise OtterError(f"--dtype {dtype!r}", hint="float32 | bfloat16 | float16")
    if include_path is not None and not include_path.is_dir():
        raise OtterError(f"--include-path {include_path} is no folder", hint="one of task files")
    asked = Asked(
        folder,
        base,
        Tasks(names, include_path, limit, seed, limit_seed),
        batch,
        dtype,
        device,
        Guidance(signal=guide, strength=strength, candidates=candidates) if guide else None,
    )
    return _finish(asked, out)


def _finish(asked: Asked, out: Path | None) -> Outcome:
    from otter_cli.benchmarks.lm_eval.run import run
    from otter_cli.cli.bench.show import shown
    from otter_cli.reports.lm_eval import lm_eval_report

    result, folder = run(asked, out)
    return shown(result, lm_eval_report(result), folder, failed=not result.holds)
