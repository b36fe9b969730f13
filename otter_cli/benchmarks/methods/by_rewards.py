"""Steered by a reward at every token: the graft's own signals, or a separate model's."""

from pathlib import Path

from otter_cli.benchmarks.benchmark import Method
from otter_cli.benchmarks.methods.entrant import Entrant, reward_judge, signal_judge
from otter_cli.decoding import ArgsGuide, RadGuide, SignalGuide, VocabularyGuide


def value(of: Entrant, *, strength: float, candidates: int, end: bool = True) -> Method:
    """V-style guidance by one of the graft's signals, in one pass a token; without `end`, ending
    a text leaves its value as it is."""
    return of.guided(
        "by value",
        SignalGuide(of.signal, strength, candidates, end=end),
        {
            "guide": "signal",
            "signal": of.signal,
            "strength": strength,
            "candidates": candidates,
            **({} if end else {"end": False}),
        },
        read=True,
        judge=signal_judge(of),
    )


def vocabulary(of: Entrant, *, strength: float, candidates: int) -> Method:
    """Q-style guidance: action values come out of the pass that gives the logits."""
    return of.guided(
        "by action values",
        VocabularyGuide(of.signal, strength, candidates),
        {
            "guide": "vocabulary",
            "signal": of.signal,
            "strength": strength,
            "candidates": candidates,
        },
    )


def args(of: Entrant, *, model: Path, strength: float, candidates: int) -> Method:
    """ARGS (arXiv 2402.01694): a separate reward model scores the candidates, cache and all. With
    a `temperature` it is ARGS-stochastic."""
    rewards = of.models.reward_model(model)
    return of.guided(
        "ARGS",
        ArgsGuide(rewards.model, strength, candidates),
        {"guide": "args", "strength": strength, "candidates": candidates},
        rewards,
        judge=reward_judge(rewards),
    )


def rad(of: Entrant, *, model: Path, strength: float, candidates: int) -> Method:
    """RAD (arXiv 2310.09520): as ARGS with a smaller model, its reward clipped to [0, 1]."""
    rewards = of.models.reward_model(model)
    return of.guided(
        "RAD",
        RadGuide(rewards.model, strength, candidates),
        {"guide": "rad", "strength": strength, "candidates": candidates},
        rewards,
        judge=reward_judge(rewards),
    )
