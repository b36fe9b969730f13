"""The options of `otter generate`, by panel of its help; `otter chat` takes some of them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer


def _option(panel: str, name: str, text: str) -> Any:
    return typer.Option(name, help=text, rich_help_panel=panel)


Folder = Annotated[Path, typer.Argument(help="the grafted folder")]
Prompt = Annotated[
    str | None, typer.Argument(help="the prompt; - reads one prompt a line from stdin")
]
File = Annotated[
    Path | None, typer.Option("--file", help="prompts from a file: txt, jsonl, jsonl.gz")
]
Base = Annotated[
    Path | None, typer.Option("--base", help="the base, where FOLDER is an adapter alone")
]
Signals = Annotated[
    list[str] | None, typer.Option("--signal", help="signals to show (default: all that score)")
]
Chat = Annotated[
    bool | None,
    typer.Option(
        "--chat/--raw",
        help="a user's message in the base's chat template, or plain text (default: chat where "
        "there is a template)",
    ),
]
Stream = Annotated[
    bool | None,
    typer.Option(
        "--stream/--no-stream",
        help="text as it comes, one prompt at a time (default: one prompt, on a terminal)",
    ),
]

MaxNewTokens = Annotated[int, _option("Sampling", "--max-new-tokens", "stop after this many")]
Temperature = Annotated[float, _option("Sampling", "--temperature", "0 is greedy")]
TopK = Annotated[int, _option("Sampling", "--top-k", "draw from the k best; 0: all")]
TopP = Annotated[float, _option("Sampling", "--top-p", "nucleus; 1: all")]
Seed = Annotated[int, _option("Sampling", "--seed", "of all draws")]
Stop = Annotated[
    list[str] | None, _option("Sampling", "--stop", "end at this string; again for more")
]
Reject = Annotated[
    list[str] | None, _option("Sampling", "--reject", "end where a signal says so: reward<0")
]

Guides = Annotated[
    list[str] | None,
    _option("Guidance", "--guide", r"NAME\[/LABEL][:WEIGHT], again for more: steer by a signal"),
]
Gates = Annotated[
    list[str] | None,
    _option("Guidance", "--gate", "guide only where entropy>1.5, p<0.6, or SIGNAL>X"),
]
Strength = Annotated[
    float, _option("Guidance", "--strength", "of the guide; negative steers away, 0 is plain")
]
Candidates = Annotated[
    int, _option("Guidance", "--candidates", "tokens that are scored at each step")
]
Label = Annotated[
    str | None, _option("Guidance", "--label", "attribute or class of the guide (default: first)")
]

Draft = Annotated[
    str | None,
    _option(
        "Speed",
        "--draft",
        "a future signal, prompt-lookup, or a smaller model's folder: same text, fewer passes",
    ),
]
Tree = Annotated[
    str | None,
    _option(
        "Speed",
        "--tree",
        "guesses of each future head, as a tree: 3,2,1; learnt:16 measures which pay",
    ),
]
Typical = Annotated[
    bool, _option("Speed", "--typical", "accept what is likely enough: faster, and lossy")
]
Exact = Annotated[
    bool, _option("Speed", "--exact", "decide near-ties of drafts by steps of one token")
]
ReadEvery = Annotated[
    int | None,
    _option("Speed", "--read-every", "tokens whose signals are read at once (16; with --reject 1)"),
]
Batch = Annotated[int, _option("Speed", "--batch", "prompts that run side by side")]
Device = Annotated[str, _option("Speed", "--device", "cpu, cuda, cuda:1")]
