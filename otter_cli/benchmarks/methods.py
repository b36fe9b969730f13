"""Ways of generating that are compared: each a call, what it holds in memory, and a record."""

from typing import Any

from otter_cli.benchmarks.benchmark import Generate, Method
from otter_cli.benchmarks.models import Grafted, bytes_of
from otter_cli.benchmarks.settings import MethodRecord, ModelRecord
from otter_cli.decoding import (
    ArgsGuide,
    FutureDrafter,
    PromptLookup,
    SignalGuide,
    generate,
)


def plain(graft: Grafted) -> Method:
    """The base as it is: the insertion is neither run nor counted."""
    return _method(
        "plain", [graft.record], {}, graft.base_bytes, lambda p, s: generate(graft.model, p, s)
    )


def guided(label: str, graft: Grafted, signal: str, *, strength: float, candidates: int) -> Method:
    """V-style guidance by one of the graft's signals, in one pass a token."""
    guide = SignalGuide(signal=signal, strength=strength, candidates=candidates)
    return _method(
        label,
        [graft.record],
        {"guide": "signal", "signal": signal, "strength": strength, "candidates": candidates},
        graft.bytes,
        lambda p, s: generate(graft.model, p, s, guide=guide, signals=(signal,)),
    )


def args(
    graft: Grafted, reward_model: Any, record: ModelRecord, *, strength: float, candidates: int
) -> Method:
    """ARGS (arXiv 2402.01694): a separate reward model scores the candidates, cache and all."""
    guide = ArgsGuide(reward_model, strength=strength, candidates=candidates)
    return _method(
        "ARGS",
        [graft.record, record],
        {"guide": "args", "strength": strength, "candidates": candidates},
        graft.base_bytes + bytes_of(reward_model.parameters()),
        lambda p, s: generate(graft.model, p, s, guide=guide),
    )


def drafted(label: str, graft: Grafted, signal: str) -> Method:
    """Drafts by the graft's future heads, verified by the base."""
    drafter = FutureDrafter(signal=signal)
    return _method(
        label,
        [graft.record],
        {"drafter": "future", "signal": signal},
        graft.bytes,
        lambda p, s: generate(graft.model, p, s, drafter=drafter),
    )


def prompt_lookup(graft: Grafted, *, ngram: int = 3, length: int = 4) -> Method:
    """Drafts copied from the prompt and the text so far, where an n-gram recurs."""
    drafter = PromptLookup(ngram=ngram, length=length)
    return _method(
        "prompt lookup",
        [graft.record],
        {"drafter": "prompt-lookup", "ngram": ngram, "length": length},
        graft.base_bytes,
        lambda p, s: generate(graft.model, p, s, drafter=drafter),
    )


def _method(
    label: str, models: list[ModelRecord], steering: dict[str, Any], weights: int, call: Generate
) -> Method:
    return Method(label, MethodRecord(label=label, models=models, steering=steering), call, weights)
