"""`otter bench preference`: whether guidance raises a reward that guided nothing."""

from pathlib import Path
from typing import Annotated

from otter_cli.cli.bench.group import (
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
    PromptsPerBatch,
    RunFolder,
    Samples,
    Seed,
    Signal,
    Strength,
    Temperature,
    Template,
    app,
    option,
    run_and_show,
    show_report,
)
from otter_cli.cli.command import Outcome, verb
from otter_cli.core.errors import OtterError


@verb(
    app,
    example="""\
    otter bench preference grafted --prompts p.jsonl --task-head head --reward-model rm --gold g
    otter bench preference grafted --pairs reward-bench.jsonl --task-head head --reward-model rm""",
    uses_graft=True,
)
def preference(
    folder: Folder,
    prompts: Annotated[
        Path | None, option("--prompts", "jsonl, csv or txt, plain or .gz", "Prompts")
    ] = None,
    pairs: Annotated[
        Path | None,
        option("--pairs", "accuracy on pairs instead: RewardBench's or HH's columns", "Prompts"),
    ] = None,
    task_head: Annotated[
        Path | None, option("--task-head", "the control: `otter train --baseline head`", "Methods")
    ] = None,
    reward_model: Annotated[
        Path | None,
        option("--reward-model", "guides ARGS: `otter train --baseline separate`", "Methods"),
    ] = None,
    gold: Annotated[
        Path | None, option("--gold", "a reward model that guides nothing", "Methods")
    ] = None,
    encoder: Annotated[
        Path | None,
        option("--encoder", "a sentence encoder's folder: coherence with the prompt", "Methods"),
    ] = None,
    column: Column = None,
    template: Template = "{text}",
    chat: Chat = False,
    limit: Limit = None,
    limit_seed: LimitSeed = 0,
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
    together: PromptsPerBatch = 1,
    batch: Batch = 8,
    temperature: Temperature = 0.0,
    max_new_tokens: NewTokens = 64,
    method: Methods = None,
    seed: Seed = 0,
    device: Device = "cpu",
    out: RunFolder = None,
) -> Outcome:
    """Responses, plain and guided by the insertion, a task head and ARGS; greedy by default.

    Judged by a gold reward that guided nothing: its mean, wins over plain, KL to the base,
    coherence, diversity, time, passes and memory. With --pairs, no text is written: which of two
    answers do insertion, task head and reward models prefer?
    """
    if pairs is not None:
        folders = {"task head": task_head, "reward model": reward_model, "gold": gold}
        return _judge_pairs(
            folder, pairs, signal, template, chat, limit, limit_seed, folders, device, out
        )
    if prompts is None or task_head is None or reward_model is None or gold is None:
        raise OtterError(
            "a run needs --prompts, --task-head, --reward-model and --gold",
            hint="or --pairs FILE alone",
        )
    from otter_cli.benchmarks.tasks.options import PreferenceOptions

    asked = PreferenceOptions(
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
        reward_model=reward_model,
        gold=gold,
        encoder=encoder,
        strength=strength,
        head_strength=head_strength,
        args_strength=args_strength,
        candidates=candidates,
        sweep=tuple(sweep or ()),
        samples=samples,
    )
    return run_and_show(asked.benchmark(), out)


def _judge_pairs(
    folder: Path,
    pairs: Path,
    signal: str,
    template: str,
    chat: bool,
    limit: int | None,
    limit_seed: int,
    others: dict[str, Path | None],
    device: str,
    out: Path | None,
) -> Outcome:
    from otter_cli.benchmarks.tasks.pairs import judge_pairs, load_judges, write_pairs
    from otter_cli.reports.comparisons import pairs_report
    from otter_cli.scorers.load import load_graft

    graft = load_graft(folder, signal, device=device)
    known = {name: path for name, path in others.items() if path is not None}
    asked = load_judges(graft, signal, known)
    result, records = judge_pairs(
        pairs, graft, asked, template=template, chat=chat, limit=limit, limit_seed=limit_seed
    )
    where = out or Path("runs") / f"pairs-{result.key[:10]}"
    write_pairs(result, records, where)
    return show_report(result, pairs_report(result), where)
