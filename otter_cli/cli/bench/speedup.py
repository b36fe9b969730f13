"""`otter bench speedup`: what speculative decoding saves, and whether the text is the base's."""

from typing import Annotated

from otter_cli.cli.bench.group import (
    Chat,
    Column,
    Device,
    Folder,
    Limit,
    LimitSeed,
    Methods,
    NewTokens,
    Prompts,
    RunFolder,
    Seed,
    Signal,
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
    example="otter bench speedup grafted --prompts spec-bench.jsonl --task-head head-only",
    uses_graft=True,
)
def speedup(
    folder: Folder,
    prompts: Prompts,
    task_head: TaskHead,
    column: Column = None,
    template: Template = "{text}",
    chat: Chat = False,
    limit: Limit = None,
    limit_seed: LimitSeed = 0,
    signal: Signal = "future",
    max_new_tokens: NewTokens = 64,
    batch: Annotated[int, option("--batch", "copies of a prompt at a time", "Decoding")] = 1,
    temperature: Temperature = 0.0,
    method: Methods = None,
    seed: Seed = 0,
    device: Device = "cpu",
    out: RunFolder = None,
) -> Outcome:
    """Decoding with drafts: future tokens, a task head's (Medusa-1) and prompt lookup.

    Speed-up, tokens per step, acceptance by position, and whether the output stays plain's.
    """
    from otter_cli.benchmarks.tasks.options import SpeedupOptions

    asked = SpeedupOptions(
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
        temperature=temperature,
        max_new_tokens=max_new_tokens,
        seed=seed,
        device=device,
    )
    return run_and_show(asked.benchmark(), out)
