"""`otter bench speedup`: what speculative decoding saves, and whether the text is the base's."""

from otter_cli.benchmarks.options import SpeedupOptions
from otter_cli.cli.bench.group import RunFolder, app, run_and_show
from otter_cli.cli.command import Outcome, verb


@verb(
    app,
    example="otter bench speedup grafted --prompts spec-bench.jsonl --task-head head-only",
    uses_graft=True,
    computes=True,
)
def speedup(options: SpeedupOptions, out: RunFolder = None) -> Outcome:
    """Measure decoding with drafts: by future tokens, a task head (Medusa-1) and prompt lookup.

    Speed-up, tokens per step, acceptance by position, and whether the text equals plain decoding's.
    """
    return run_and_show(options, out)
