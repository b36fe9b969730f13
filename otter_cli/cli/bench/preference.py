"""`otter bench preference`: does guidance raise a reward that guided nothing?"""

from pathlib import Path
from typing import Annotated

from otter_cli.cli.app import Outcome, verb
from otter_cli.cli.bench.app import app
from otter_cli.cli.bench.options import (
    Batch,
    Candidates,
    Column,
    Device,
    Folder,
    HeadStrength,
    Limit,
    Methods,
    NewTokens,
    Out,
    Prompts,
    Samples,
    Seed,
    Signal,
    Strength,
    TaskHead,
    Temperature,
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
    encoder: Annotated[
        Path | None,
        option("--encoder", "a sentence encoder's folder: coherence with the prompt", "Methods"),
    ] = None,
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
    sweep: Annotated[
        list[float] | None, option("--sweep", "another strength, again for more", "Methods")
    ] = None,
    samples: Samples = 1,
    batch: Batch = 8,
    temperature: Temperature = 0.0,
    max_new_tokens: NewTokens = 64,
    method: Methods = None,
    seed: Seed = 0,
    device: Device = "cpu",
    out: Out = None,
) -> Outcome:
    """Responses, plain and guided by the insertion, a task head and ARGS; greedy by default.

    Judged by a gold reward that guided nothing: its mean, and wins over plain. Diversity,
    log-probability under the base, time per token, passes and memory.
    """
    from otter_cli.benchmarks import assemble
    from otter_cli.benchmarks.method_specs import parse_methods
    from otter_cli.benchmarks.prompts import PromptFile
    from otter_cli.decoding import Sampling

    file = PromptFile(prompts, column, template, limit)
    # Plain decoding draws from as many candidates as a guide does.
    top_k = candidates if temperature else 0
    sampling = Sampling(max_new_tokens, temperature, top_k=top_k)
    shared = {"repeats": samples, "batch": batch, "seed": seed}
    grafts, setting = assemble.prepare(
        folder, task_head, signal, file, sampling, **shared, device=device
    )
    guidance = assemble.Guidance(
        signal, strength, candidates, head_strength, args_strength, tuple(sweep or ())
    )
    return run_and_show(
        assemble.preference(
            grafts,
            setting,
            guidance,
            reward_model=reward_model,
            gold=gold,
            encoder=encoder,
            more=parse_methods(method),
        ),
        out,
    )
