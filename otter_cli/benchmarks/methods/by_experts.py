"""Steered by other language models' log-probabilities, or by what an insertion learnt of them."""

from pathlib import Path

from otter_cli.benchmarks.benchmark import Method
from otter_cli.benchmarks.methods.entrant import Entrant
from otter_cli.core.errors import OtterError
from otter_cli.decoding import DExpertsGuide, GenArmGuide, VocabularyGuide


def genarm(of: Entrant, *, model: Path, strength: float, candidates: int = 0) -> Method:
    """GenARM (arXiv 2410.08193) by a language model; by the insertion it is `vocabulary` on a
    signal of objective autoregressive."""
    rewards = of.models.language_model(model)
    return of.guided(
        "GenARM",
        GenArmGuide(rewards.model, strength, candidates),
        {"guide": "genarm", "strength": strength, "candidates": candidates},
        rewards,
    )


def dexperts(
    of: Entrant,
    *,
    strength: float,
    expert: Path | None = None,
    anti: Path | None = None,
    top_p: float = 0.9,
) -> Method:
    """DExperts (arXiv 2105.03023) by separate language models or LoRA adapters of the base."""
    good, bad = (None if p is None else of.models.language_model(p) for p in (expert, anti))
    beside = [one for one in (good, bad) if one is not None]
    roles = [name for name, one in (("expert", good), ("anti-expert", bad)) if one is not None]
    return of.guided(
        "DExperts",
        DExpertsGuide(good and good.model, bad and bad.model, strength, top_p),
        {"guide": "dexperts", "roles": roles, "strength": strength, "top_p": top_p},
        *beside,
    )


def dexperts_inserted(
    of: Entrant, *, strength: float, candidates: int, expert: str = "", anti: str = ""
) -> Method:
    """DExperts by two signals of action values in one graft: `z + strength (q+ - q-)` over the
    base's best candidates, without a pass."""
    signals = [(name, sign) for name, sign in ((expert, 1.0), (anti, -1.0)) if name]
    if not signals:
        raise OtterError(
            "dexperts-inserted has neither expert nor anti-expert",
            hint="name signals of kind vocabulary: expert=NAME,anti=NAME",
        )
    return of.guided(
        "DExperts, inserted",
        [VocabularyGuide(name, sign * strength, candidates) for name, sign in signals],
        {
            "guide": "dexperts-inserted",
            "expert": expert,
            "anti": anti,
            "strength": strength,
            "candidates": candidates,
        },
    )
