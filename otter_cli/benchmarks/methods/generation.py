"""The methods of generating that are compared, and METHODS, the registry by kind.

Each function takes a MethodContext (graft, signal, model pool) and its own options, and returns a
Method. To add a baseline: write the function and name it in METHODS."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from otter_cli.benchmarks.benchmark import GenerateFunction, Method
from otter_cli.benchmarks.model_pool import ModelPool
from otter_cli.benchmarks.records import MethodRecord
from otter_cli.core.errors import OtterError
from otter_cli.decoding.best_of import BestOf, best_of
from otter_cli.decoding.bounds import SignalBound, Stops
from otter_cli.decoding.generate import generate
from otter_cli.decoding.guides.external_models import (
    ArgsGuide,
    DExpertsGuide,
    GenArmGuide,
    RadGuide,
)
from otter_cli.decoding.guides.guide import Guide
from otter_cli.decoding.guides.signal_guides import SignalGuide, VocabularyGuide
from otter_cli.decoding.request_checks import request_warnings
from otter_cli.decoding.speculative.drafters import DraftModel, FutureDrafter, PromptLookup
from otter_cli.decoding.speculative.drafts import TreeShape
from otter_cli.scorers.load import LoadedGraft, LoadedModel, parameter_bytes
from otter_cli.scorers.scorer import Scorer


class MethodContext:
    """What a method is made of: the graft it runs on, its signal, and how others are loaded."""

    def __init__(self, graft: LoadedGraft, signal: str, models: ModelPool) -> None:
        self.graft, self.signal, self.models = graft, signal, models

    def method(
        self,
        label: str,
        call: GenerateFunction,
        steering: dict[str, Any],
        *beside: LoadedModel,
        stream: bool = True,
        judge: Scorer | None = None,
        warnings: Sequence[str] = (),
    ) -> Method:
        """`beside`: models that it runs next to the base; `stream`: whether the insertion runs."""
        own = self.graft.bytes if stream else self.graft.base_bytes
        records = [self.graft.record, *(one.record for one in beside)]
        record = MethodRecord(label=label, models=records, steering=steering)
        held = own + sum(parameter_bytes(one.model.parameters()) for one in beside)
        return Method(label, record, call, held, judge, tuple(warnings))

    def guided(
        self,
        label: str,
        guide: Guide | Sequence[Guide],
        steering: dict[str, Any],
        *beside: LoadedModel,
        read: bool = False,
        judge: Scorer | None = None,
    ) -> Method:
        """`read`: keep the signal at every token beside the samples."""
        model, signals = self.graft.model, (self.signal,) if read else ()
        guides = [guide] if isinstance(guide, Guide) else list(guide)
        return self.method(
            label,
            lambda p, s: generate(model, p, s, guide=guide, signals=signals),
            steering,
            *beside,
            stream=not beside,
            judge=judge,
            warnings=request_warnings(model, guides=guides, signals=signals),
        )


def signal_scorer(of: MethodContext) -> Scorer:
    from otter_cli.scorers.response_models import SignalScorer

    return SignalScorer(of.graft, of.signal)


def reward_model_scorer(loaded: LoadedModel) -> Scorer:
    from otter_cli.scorers.response_models import RewardModelScorer

    return RewardModelScorer(loaded.model, loaded.tokenizer, loaded.record)


def plain(of: MethodContext) -> Method:
    """The base as it is: the insertion is neither run nor counted."""
    model = of.graft.model
    return of.method("plain", lambda p, s: generate(model, p, s), {}, stream=False)


def best_of_n(
    of: MethodContext,
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
        judge=signal_scorer(of) if rewards is None else reward_model_scorer(rewards),
        warnings=request_warnings(graft, blocks_by=request.blocks_by),
    )


def early_stop(of: MethodContext, *, bound: float = 0.5, above: bool = True) -> Method:
    """Text ends at the token at which the signal crosses the bound: nothing is steered."""
    stops = Stops(signals=(SignalBound(of.signal, bound, above),))
    model, signal = of.graft.model, of.signal
    return of.method(
        "early stop",
        lambda p, s: generate(model, p, s, stops=stops, signals=(signal,)),
        {"stop": "signal", "signal": signal, "bound": bound, "above": above},
        warnings=request_warnings(model, stops=stops),
    )


def by_value(of: MethodContext, *, strength: float, candidates: int, end: bool = True) -> Method:
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
        judge=signal_scorer(of),
    )


def by_action_values(of: MethodContext, *, strength: float, candidates: int) -> Method:
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


def args_method(of: MethodContext, *, model: Path, strength: float, candidates: int) -> Method:
    """ARGS (arXiv 2402.01694): a separate reward model scores the candidates, cache and all. With
    a `temperature` it is ARGS-stochastic."""
    rewards = of.models.reward_model(model)
    return of.guided(
        "ARGS",
        ArgsGuide(rewards.model, strength, candidates),
        {"guide": "args", "strength": strength, "candidates": candidates},
        rewards,
        judge=reward_model_scorer(rewards),
    )


def rad_method(of: MethodContext, *, model: Path, strength: float, candidates: int) -> Method:
    """RAD (arXiv 2310.09520): as ARGS with a smaller model, its reward clipped to [0, 1]."""
    rewards = of.models.reward_model(model)
    return of.guided(
        "RAD",
        RadGuide(rewards.model, strength, candidates),
        {"guide": "rad", "strength": strength, "candidates": candidates},
        rewards,
        judge=reward_model_scorer(rewards),
    )


def genarm(of: MethodContext, *, model: Path, strength: float, candidates: int = 0) -> Method:
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
    of: MethodContext,
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
    of: MethodContext, *, strength: float, candidates: int, expert: str = "", anti: str = ""
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


def future(
    of: MethodContext, *, tree: str = "", acceptance: Literal["lossless", "typical"] = "lossless"
) -> Method:
    """Drafts by future heads, verified by the base; plain ones without a stream: Medusa-1. `tree`
    4x2x1 drafts four tokens for t+2, two after each of them, and one more."""
    shape = TreeShape.of_widths([_tree_width(width) for width in tree.split("x")]) if tree else None
    drafter, model = FutureDrafter(of.signal, shape), of.graft.model
    extra = {"tree": tree} if tree else {}
    extra |= {"acceptance": acceptance} if acceptance != "lossless" else {}
    return of.method(
        "future tokens",
        lambda p, s: generate(model, p, s, drafter=drafter, acceptance=acceptance),
        {"drafter": "future", "signal": of.signal, **extra},
    )


def prompt_lookup(of: MethodContext, *, ngram: int = 3, length: int = 4) -> Method:
    """Drafts copied from the prompt and the text so far, where an n-gram recurs."""
    drafter, model = PromptLookup(ngram=ngram, length=length), of.graft.model
    return of.method(
        "prompt lookup",
        lambda p, s: generate(model, p, s, drafter=drafter),
        {"drafter": "prompt-lookup", "ngram": ngram, "length": length},
        stream=False,
    )


def draft_model(of: MethodContext, *, model: Path, length: int = 4) -> Method:
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


def _tree_width(text: str) -> int:
    if not text.isdecimal():
        raise OtterError(f"{text!r} is no width of a draft tree", hint="such as tree=4x2x1")
    return int(text)


METHODS: dict[str, Callable[..., Method]] = {
    "plain": plain,
    "value": by_value,
    "vocabulary": by_action_values,
    "args": args_method,
    "rad": rad_method,
    "genarm": genarm,
    "dexperts": dexperts,
    "dexperts-inserted": dexperts_inserted,
    "best-of-n": best_of_n,
    "early-stop": early_stop,
    "future": future,
    "prompt-lookup": prompt_lookup,
    "draft-model": draft_model,
}
