"""Each token is the base's own: as it is, the best of several texts, or a text cut off."""

from pathlib import Path

from otter_cli.benchmarks.benchmark import Method
from otter_cli.benchmarks.methods.entrant import Entrant, reward_judge, signal_judge
from otter_cli.decoding import BestOf, SignalBound, Stops, best_of, generate
from otter_cli.decoding.positions import warnings_of


def plain(of: Entrant) -> Method:
    """The base as it is: the insertion is neither run nor counted."""
    model = of.graft.model
    return of.method("plain", lambda p, s: generate(model, p, s), {}, stream=False)


def best_of_n(
    of: Entrant,
    *,
    n: int = 8,
    model: Path | None = None,
    block: int | None = None,
    lowest: bool = False,
    end: bool = True,
) -> Method:
    """The best of n draws, by the graft's signal or by a separate reward model; `lowest`: of a
    score that tells what is unwanted; without `end`, read before a text's end token."""
    rewards = None if model is None else of.models.reward_model(model)
    request = BestOf(
        n,
        signal=of.signal if rewards is None else None,
        reward_model=rewards and rewards.model,
        block=block,
        lowest=lowest,
        end=end,
    )
    graft = of.graft.model
    return of.method(
        f"best of {n}",
        lambda p, s: best_of(graft, p, s, request),
        {
            "guide": "best-of-n",
            "n": n,
            "block": block,
            "separate": rewards is not None,
            "lowest": lowest,
            **({} if end else {"end": False}),
        },
        *([] if rewards is None else [rewards]),
        stream=rewards is None,
        judge=signal_judge(of) if rewards is None else reward_judge(rewards),
        warnings=warnings_of(graft, blocks_by=request.blocks_by),
    )


def early_stop(of: Entrant, *, bound: float = 0.5, above: bool = True) -> Method:
    """Text ends at the token at which the signal crosses the bound: nothing is steered."""
    stops = Stops(signals=(SignalBound(of.signal, bound, above),))
    model, signal = of.graft.model, of.signal
    return of.method(
        "early stop",
        lambda p, s: generate(model, p, s, stops=stops, signals=(signal,)),
        {"stop": "signal", "signal": signal, "bound": bound, "above": above},
        warnings=warnings_of(model, stops=stops),
    )
