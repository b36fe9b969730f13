"""`otter bench preference`: whether guidance raises a reward that guided nothing."""

from pathlib import Path

from otter_cli.benchmarks.options import PairsOptions, PreferenceOptions
from otter_cli.cli.bench.group import RunFolder, app, run_and_show, show_report
from otter_cli.cli.command import Outcome, verb


@verb(
    app,
    example="""\
    otter bench preference grafted --prompts p.jsonl --task-head head --reward-model rm --gold g
    otter bench preference grafted --pairs reward-bench.jsonl --task-head head --reward-model rm""",
    uses_graft=True,
    computes=True,
)
def preference(options: PairsOptions | PreferenceOptions, out: RunFolder = None) -> Outcome:
    """Answer prompts, plain and guided, and let a gold reward model judge the answers.

    Guides are the insertion, a task head and ARGS; decoding is greedy by default. The gold model
    guides no method. Figures: mean reward, wins over plain decoding,
    KL to the base, coherence, diversity, time, passes and memory. With --pairs nothing is
    generated: which of two answers do insertion, task head and reward models prefer?
    """
    if isinstance(options, PairsOptions):
        return _judge_pairs(options, out)
    return run_and_show(options, out)


def _judge_pairs(options: PairsOptions, out: Path | None) -> Outcome:
    from otter_cli.benchmarks.tasks.pairs import judge_pairs, load_judges, write_pairs
    from otter_cli.reports.comparisons import pairs_report
    from otter_cli.scorers.load import load_graft

    graft = load_graft(options.folder, options.signal, device=options.device)
    named = {
        "task head": options.task_head,
        "reward model": options.reward_model,
        "gold": options.gold,
    }
    folders = {name: path for name, path in named.items() if path is not None}
    result, records = judge_pairs(
        options.pairs,
        graft,
        load_judges(graft, options.signal, folders),
        template=options.template,
        chat=options.chat,
        limit=options.limit,
        limit_seed=options.limit_seed,
    )
    folder = out or Path("runs") / f"pairs-{result.key[:10]}"
    write_pairs(result, records, folder)
    return show_report(result, pairs_report(result), folder)
