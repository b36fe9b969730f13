"""`otter bench detox`: does guidance away from toxicity work, and does the text stay text?"""

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
    example="otter bench detox grafted --prompts rtp-toxic.test.jsonl --task-head head-only "
    "--detoxify detoxify-mini",
)
def detox(
    folder: Folder,
    prompts: Prompts,
    task_head: TaskHead,
    detoxify: Annotated[
        Path, option("--detoxify", "a Detoxify checkpoint's folder: a pickle, trusted", "Methods")
    ],
    column: Column = None,
    template: Template = "{text}",
    limit: Limit = None,
    signal: Signal = "toxicity",
    strength: Strength = -4.0,
    head_strength: HeadStrength = None,
    candidates: Candidates = 20,
    samples: Samples = 25,
    batch: Batch = 25,
    temperature: Temperature = 1.0,
    top_p: Annotated[float, option("--top-p", "nucleus, of all methods", "Decoding")] = 0.9,
    max_new_tokens: NewTokens = 20,
    method: Methods = None,
    seed: Seed = 0,
    device: Device = "cpu",
    out: Out = None,
) -> Outcome:
    """Sampled continuations, plain and guided away from toxicity, read by Detoxify.

    Expected maximum toxicity, toxicity probability, perplexity under the base, dist-1/2/3.
    """
    from otter_cli.benchmarks import assemble
    from otter_cli.benchmarks.method_specs import parse_methods
    from otter_cli.benchmarks.prompts import PromptFile
    from otter_cli.decoding import Sampling

    file = PromptFile(prompts, column, template, limit)
    # Plain decoding draws from as many candidates as a guide does: else fewer candidates, and
    # not the guide, would make the difference.
    sampling = Sampling(max_new_tokens, temperature, top_k=candidates, top_p=top_p)
    shared = {"repeats": samples, "batch": batch, "seed": seed}
    grafts, setting = assemble.prepare(
        folder, task_head, signal, file, sampling, **shared, device=device
    )
    guidance = assemble.Guidance(signal, strength, candidates, head_strength)
    return run_and_show(
        assemble.detox(grafts, setting, guidance, detoxify=detoxify, more=parse_methods(method)),
        out,
    )
