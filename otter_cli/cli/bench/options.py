"""The options that several benchmarks share."""

from pathlib import Path
from typing import Annotated, Any

import typer


def option(name: str, help: str, panel: str) -> Any:
    return typer.Option(name, help=help, rich_help_panel=panel)


Folder = Annotated[Path, typer.Argument(help="the grafted folder")]
Prompts = Annotated[Path, option("--prompts", "jsonl, csv or txt, plain or .gz", "Prompts")]
Column = Annotated[str | None, option("--column", "where the prompt stands", "Prompts")]
Template = Annotated[str, option("--template", "what {text} is put into", "Prompts")]
Chat = Annotated[
    bool, option("--chat", "messages, or what a user says: by the base's template", "Prompts")
]
Limit = Annotated[
    int | None, option("--limit", "only so many prompts, drawn across categories", "Prompts")
]
LimitSeed = Annotated[
    int, option("--limit-seed", "which prompts --limit draws, for every --seed", "Prompts")
]
TaskHead = Annotated[
    Path, option("--task-head", "the control: `otter train --baseline head`", "Methods")
]
Signal = Annotated[str, option("--signal", "the signal's name in both folders", "Methods")]
Strength = Annotated[float, option("--strength", "weight of the guide's score", "Methods")]
HeadStrength = Annotated[
    float | None, option("--head-strength", "the task head's, if another", "Methods")
]
Candidates = Annotated[int, option("--candidates", "tokens that the guide scores", "Methods")]
Methods = Annotated[
    list[str] | None,
    option(
        "--method",
        "another, again for more: [NAME=]KIND:key=value,... such as rad:model=DIR,strength=2",
        "Methods",
    ),
]
Samples = Annotated[int, option("--samples", "responses a prompt", "Decoding")]
Batch = Annotated[int, option("--batch", "responses to one prompt at a time", "Decoding")]
Together = Annotated[
    int, option("--together", "prompts that share a batch: faster, other rounding", "Decoding")
]
Temperature = Annotated[float, option("--temperature", "of all methods; 0: greedy", "Decoding")]
NewTokens = Annotated[int, option("--max-new-tokens", "length of a response", "Decoding")]
Seed = Annotated[int, option("--seed", "of sampling, for every method the same", "Decoding")]
Device = Annotated[str, option("--device", "cpu, cuda, cuda:1", "Decoding")]
AllowPickle = Annotated[
    bool,
    option(
        "--allow-pickle",
        "a Detoxify file that holds code may run that code: trusted ones",
        "Output",
    ),
]
Out = Annotated[
    Path | None,
    option("--out", "run folder; if left out, runs/NAME-KEY, a digest of the settings", "Output"),
]
