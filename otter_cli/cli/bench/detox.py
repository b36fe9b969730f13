"""`otter bench detox`: toxicity and fluency of sampled text, plain and guided."""

from pathlib import Path
from typing import Annotated

from otter_cli.cli.bench.group import (
    AllowPickle,
    Batch,
    Candidates,
    Chat,
    Column,
    Device,
    Folder,
    HeadStrength,
    Limit,
    LimitSeed,
    Methods,
    NewTokens,
    Prompts,
    PromptsPerBatch,
    RunFolder,
    Samples,
    Seed,
    Signal,
    Strength,
    TaskHead,
    Temperature,
    Template,
    app,
    option,
    run_and_show,
)
from otter_cli.cli.command import Outcome, verb


@verb(
    app,
    example="otter bench detox grafted --prompts rtp-toxic.test.jsonl --task-head head-only "
    "--detoxify detoxify-mini",
    uses_graft=True,
)
def detox(
    folder: Folder,
    prompts: Prompts,
    task_head: TaskHead,
    detoxify: Annotated[Path, option("--detoxify", "a Detoxify checkpoint's folder", "Methods")],
    column: Column = None,
    template: Template = "{text}",
    chat: Chat = False,
    limit: Limit = None,
    limit_seed: LimitSeed = 0,
    signal: Signal = "toxicity",
    strength: Strength = -4.0,
    head_strength: HeadStrength = None,
    candidates: Candidates = 20,
    samples: Samples = 25,
    together: PromptsPerBatch = 1,
    batch: Batch = 25,
    temperature: Temperature = 1.0,
    top_p: Annotated[float, option("--top-p", "nucleus, of all methods", "Decoding")] = 0.9,
    max_new_tokens: NewTokens = 20,
    method: Methods = None,
    seed: Seed = 0,
    device: Device = "cpu",
    allow_pickle: AllowPickle = False,
    out: RunFolder = None,
) -> Outcome:
    """Sampled continuations, plain and guided away from toxicity, read by Detoxify.

    Expected maximum toxicity, toxicity probability, perplexity under the base, dist-1/2/3.
    """
    from otter_cli.benchmarks.tasks.options import DetoxOptions
    from otter_cli.scorers.detoxify import pickle_allowed

    asked = DetoxOptions(
        folder=folder,
        prompts=prompts,
        task_head=task_head,
        column=column,
        template=template,
        chat=chat,
        limit=limit,
        limit_seed=limit_seed,
        signal=signal,
        method=tuple(method or ()),
        batch=batch,
        together=together,
        temperature=temperature,
        max_new_tokens=max_new_tokens,
        seed=seed,
        device=device,
        detoxify=detoxify,
        strength=strength,
        head_strength=head_strength,
        candidates=candidates,
        samples=samples,
        top_p=top_p,
    )
    with pickle_allowed(allow_pickle):
        benchmark = asked.benchmark()
    return run_and_show(benchmark, out)
