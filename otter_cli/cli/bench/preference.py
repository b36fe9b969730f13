"""`otter bench preference`: does guidance raise a reward that guided nothing?"""

from pathlib import Path
from typing import Annotated

from otter_cli.cli.app import Outcome, verb
from otter_cli.cli.bench.app import app
from otter_cli.cli.bench.options import (
    Candidates,
    Column,
    Device,
    Folder,
    HeadStrength,
    Limit,
    NewTokens,
    Out,
    Prompts,
    Seed,
    Signal,
    Strength,
    TaskHead,
    Template,
    option,
)
from otter_cli.cli.bench.show import run_and_show


@verb(
    app,
    example="otter bench preference grafted --prompts prompts.jsonl --task-head head-only "
    "--reward-model separate --gold gold",
)
def preference(
    folder: Folder,
    prompts: Prompts,
    task_head: TaskHead,
    reward_model: Annotated[
        Path, option("--reward-model", "guides ARGS: `otter train --baseline separate`", "Methods")
    ],
    gold: Annotated[Path, option("--gold", "a reward model that guides nothing", "Methods")],
    column: Column = None,
    template: Template = "{text}",
    limit: Limit = None,
    signal: Signal = "reward",
    strength: Strength = 1.5,
    head_strength: HeadStrength = None,
    args_strength: Annotated[
        float | None, option("--args-strength", "the reward model's, if another", "Methods")
    ] = None,
    candidates: Candidates = 10,
    max_new_tokens: NewTokens = 64,
    seed: Seed = 0,
    device: Device = "cpu",
    out: Out = None,
) -> Outcome:
    """Greedy responses, plain and guided by the insertion, a task head and ARGS.

    Judged by a gold reward that guided nothing; diversity, time per token, passes and memory.
    """
    from otter_cli.benchmarks import assemble
    from otter_cli.benchmarks.prompts import PromptFile
    from otter_cli.decoding import Sampling

    file = PromptFile(prompts, column, template, limit)
    grafts, setting = assemble.prepare(
        folder, task_head, signal, file, Sampling(max_new_tokens), seed=seed, device=device
    )
    guidance = assemble.Guidance(signal, strength, candidates, head_strength, args_strength)
    return run_and_show(
        assemble.preference(grafts, setting, guidance, reward_model=reward_model, gold=gold), out
    )
