"""The base's own text in fewer steps: drafts, and what they come from."""

from pathlib import Path
from typing import Literal

from otter_cli.benchmarks.benchmark import Method
from otter_cli.benchmarks.methods.entrant import Entrant
from otter_cli.core.errors import OtterError
from otter_cli.decoding import DraftModel, FutureDrafter, PromptLookup, TreeShape, generate


def future(
    of: Entrant, *, tree: str = "", acceptance: Literal["lossless", "typical"] = "lossless"
) -> Method:
    """Drafts by future heads, verified by the base; plain ones without a stream: Medusa-1. `tree`
    4x2x1 drafts four tokens for t+2, two after each of them, and one more."""
    shape = TreeShape.of_widths([_whole(width) for width in tree.split("x")]) if tree else None
    drafter, model = FutureDrafter(of.signal, shape), of.graft.model
    extra = {"tree": tree} if tree else {}
    extra |= {"acceptance": acceptance} if acceptance != "lossless" else {}
    return of.method(
        "future tokens",
        lambda p, s: generate(model, p, s, drafter=drafter, acceptance=acceptance),
        {"drafter": "future", "signal": of.signal, **extra},
    )


def prompt_lookup(of: Entrant, *, ngram: int = 3, length: int = 4) -> Method:
    """Drafts copied from the prompt and the text so far, where an n-gram recurs."""
    drafter, model = PromptLookup(ngram=ngram, length=length), of.graft.model
    return of.method(
        "prompt lookup",
        lambda p, s: generate(model, p, s, drafter=drafter),
        {"drafter": "prompt-lookup", "ngram": ngram, "length": length},
        stream=False,
    )


def draft_model(of: Entrant, *, model: Path, length: int = 4) -> Method:
    """Drafts by a smaller language model's own greedy continuation."""
    smaller = of.models.language_model(model)
    drafter, graft = DraftModel(smaller.model, length), of.graft.model
    return of.method(
        "draft model",
        lambda p, s: generate(graft, p, s, drafter=drafter),
        {"drafter": "draft-model", "length": length},
        smaller,
        stream=False,
    )


def _whole(text: str) -> int:
    if not text.isdecimal():
        raise OtterError(f"{text!r} is no width of a draft tree", hint="such as tree=4x2x1")
    return int(text)
