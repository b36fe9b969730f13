"""The methods of generating that are compared, by the name that users give: METHODS.

Each function takes a `MethodContext` and its own options, and returns a `Method`. To add a
baseline, write its function here with `@method("NAME")`, and a test."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

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

MethodFunction = TypeVar("MethodFunction", bound=Callable[..., Method])

METHODS: dict[str, Callable[..., Method]] = {}


def method(name: str) -> Callable[[MethodFunction], MethodFunction]:
    """Registers a function as the method `name`."""

    def register(function: MethodFunction) -> MethodFunction:
        METHODS[name] = function
        return function

    return register


class MethodContext:
    """What a method is made of: the graft it runs on, its signal, and a pool of other models."""

    def __init__(self, graft: LoadedGraft, signal: str, models: ModelPool) -> None:
        self.graft, self.signal, self.models = graft, signal, models

    def method(
        self,
        label: str,
        generate: GenerateFunction,
        steering: dict[str, Any],
        *external: LoadedModel,
        stream: bool = True,
        judge: Scorer | None = None,
        warnings: Sequence[str] = (),
    ) -> Method:
        """`steering`: as the record has it. `external`: models that run beside the base. `stream`:
        whether the insertion runs."""
        records = [self.graft.record, *(loaded.record for loaded in external)]
        own = self.graft.bytes if stream else self.graft.base_bytes
        return Method(
            MethodRecord(label=label, models=records, steering=steering),
            generate,
            own + sum(parameter_bytes(loaded.model.parameters()) for loaded in external),
            judge,
            tuple(warnings),
        )

    def guided(
        self,
        label: str,
        guide: Guide | Sequence[Guide],
        steering: dict[str, Any],
        *external: LoadedModel,
        read: bool = False,
        judge: Scorer | None = None,
    ) -> Method:
        """`read`: store the signal of every token with the samples."""
        model, signals = self.graft.model, (self.signal,) if read else ()
        guides = [guide] if isinstance(guide, Guide) else list(guide)
        return self.method(
            label,
            lambda p, s: generate(model, p, s, guide=guide, signals=signals),
            steering,
            *external,
            stream=not external,
            judge=judge,
            warnings=request_warnings(model, guides=guides, signals=signals),
        )

    def signal_scorer(self) -> Scorer:
        from otter_cli.scorers.response_models import SignalScorer

        return SignalScorer(self.graft, self.signal)


def reward_model_scorer(loaded: LoadedModel) -> Scorer:
    from otter_cli.scorers.response_models import RewardModelScorer

    return RewardModelScorer(loaded.model, loaded.tokenizer, loaded.record)


@method("plain")
def plain(context: MethodContext) -> Method:
    """Plain decoding of the base. The insertion neither runs nor counts as memory."""
    model = context.graft.model
    return context.method("plain", lambda p, s: generate(model, p, s), {}, stream=False)


@method("value")
def by_value(
    context: MethodContext, *, strength: float, candidates: int, end: bool = True
) -> Method:
    """V-style guidance by one of the graft's signals, in one pass per token. Without `end`, a
    text's end token keeps the value of the text before it."""
    steering = {"guide": "signal", "signal": context.signal, "strength": strength}
    return context.guided(
        "by value",
        SignalGuide(context.signal, strength, candidates, end=end),
        {**steering, "candidates": candidates, **({} if end else {"end": False})},
        read=True,
        judge=context.signal_scorer(),
    )


@method("vocabulary")
def by_action_values(context: MethodContext, *, strength: float, candidates: int) -> Method:
    """Q-style guidance: the pass that gives the logits gives the action values."""
    steering = {"guide": "vocabulary", "signal": context.signal, "strength": strength}
    return context.guided(
        "by action values",
        VocabularyGuide(context.signal, strength, candidates),
        {**steering, "candidates": candidates},
    )


@method("args")
def args_method(context: MethodContext, *, model: Path, strength: float, candidates: int) -> Method:
    """ARGS (arXiv 2402.01694): a separate reward model with its own KV cache scores the candidates.
    With a `temperature` it is ARGS-stochastic."""
    return _by_reward_model(context, "ARGS", ArgsGuide, model, strength, candidates)


@method("rad")
def rad_method(context: MethodContext, *, model: Path, strength: float, candidates: int) -> Method:
    """RAD (arXiv 2310.09520): as ARGS with a smaller model, its reward clipped to [0, 1]."""
    return _by_reward_model(context, "RAD", RadGuide, model, strength, candidates)


def _by_reward_model(
    context: MethodContext,
    label: str,
    guide: Callable[[Any, float, int], Guide],
    folder: Path,
    strength: float,
    candidates: int,
) -> Method:
    rewards = context.models.reward_model(folder)
    return context.guided(
        label,
        guide(rewards.model, strength, candidates),
        {"guide": label.lower(), "strength": strength, "candidates": candidates},
        rewards,
        judge=reward_model_scorer(rewards),
    )


@method("genarm")
def genarm(context: MethodContext, *, model: Path, strength: float, candidates: int = 0) -> Method:
    """GenARM (arXiv 2410.08193) by a separate language model. By the insertion it is `vocabulary`
    with a signal of the objective autoregressive."""
    rewards = context.models.language_model(model)
    return context.guided(
        "GenARM",
        GenArmGuide(rewards.model, strength, candidates),
        {"guide": "genarm", "strength": strength, "candidates": candidates},
        rewards,
    )


@method("dexperts")
def dexperts(
    context: MethodContext,
    *,
    strength: float,
    expert: Path | None = None,
    anti: Path | None = None,
    top_p: float = 0.9,
) -> Method:
    """DExperts (arXiv 2105.03023) by separate language models or LoRA adapters of the base."""
    folders = {"expert": expert, "anti-expert": anti}
    loaded = {role: context.models.language_model(path) for role, path in folders.items() if path}
    models = {role: language_model.model for role, language_model in loaded.items()}
    return context.guided(
        "DExperts",
        DExpertsGuide(models.get("expert"), models.get("anti-expert"), strength, top_p),
        {"guide": "dexperts", "roles": list(loaded), "strength": strength, "top_p": top_p},
        *loaded.values(),
    )


@method("dexperts-inserted")
def dexperts_inserted(
    context: MethodContext, *, strength: float, candidates: int, expert: str = "", anti: str = ""
) -> Method:
    """DExperts by two action-value signals of one graft, without a further pass: logits plus
    `strength (q_expert - q_anti)` over the base's best candidates."""
    signals = [(name, sign) for name, sign in ((expert, 1.0), (anti, -1.0)) if name]
    if not signals:
        raise OtterError(
            "dexperts-inserted has neither expert nor anti-expert",
            hint="name signals of kind vocabulary: expert=NAME,anti=NAME",
        )
    steering = {"guide": "dexperts-inserted", "expert": expert, "anti": anti}
    return context.guided(
        "DExperts, inserted",
        [VocabularyGuide(name, sign * strength, candidates) for name, sign in signals],
        {**steering, "strength": strength, "candidates": candidates},
    )


@method("best-of-n")
def best_of_n(
    context: MethodContext,
    *,
    n: int = 8,
    model: Path | None = None,
    block: int | None = None,
    lowest: bool = False,
    end: bool = True,
) -> Method:
    """The best of n samples, by the graft's signal or by a separate reward model. `lowest`: for a
    score of what is unwanted. Without `end`, the score is read before a text's end token."""
    graft, rewards = context.graft.model, context.models.reward_model(model) if model else None
    request = BestOf(
        n,
        signal=None if rewards else context.signal,
        reward_model=rewards and rewards.model,
        block=block,
        lowest=lowest,
        end=end,
    )
    steering = {"guide": "best-of-n", "n": n, "block": block, "separate": rewards is not None}
    return context.method(
        f"best of {n}",
        lambda p, s: best_of(graft, p, s, request),
        {**steering, "lowest": lowest, **({} if end else {"end": False})},
        *([rewards] if rewards else []),
        stream=rewards is None,
        judge=reward_model_scorer(rewards) if rewards else context.signal_scorer(),
        warnings=request_warnings(graft, blocks_by=request.blocks_by),
    )


@method("early-stop")
def early_stop(context: MethodContext, *, bound: float = 0.5, above: bool = True) -> Method:
    """Text ends at the token at which the signal crosses the bound. Nothing is steered."""
    model, signal = context.graft.model, context.signal
    stops = Stops(signals=(SignalBound(signal, bound, above),))
    return context.method(
        "early stop",
        lambda p, s: generate(model, p, s, stops=stops, signals=(signal,)),
        {"stop": "signal", "signal": signal, "bound": bound, "above": above},
        warnings=request_warnings(model, stops=stops),
    )


@method("future")
def future(
    context: MethodContext,
    *,
    tree: str = "",
    acceptance: Literal["lossless", "typical"] = "lossless",
) -> Method:
    """Drafts by future-token heads, verified by the base. Heads without a stream are Medusa-1.
    `tree` 4x2x1 drafts four tokens for t+2, two after each of them, and one more."""
    shape = TreeShape.of_widths([_tree_width(width) for width in tree.split("x")]) if tree else None
    drafter, model = FutureDrafter(context.signal, shape), context.graft.model
    steering = {"drafter": "future", "signal": context.signal}
    steering |= {"tree": tree} if tree else {}
    steering |= {"acceptance": acceptance} if acceptance != "lossless" else {}
    return context.method(
        "future tokens",
        lambda p, s: generate(model, p, s, drafter=drafter, acceptance=acceptance),
        steering,
    )


@method("prompt-lookup")
def prompt_lookup(context: MethodContext, *, ngram: int = 3, length: int = 4) -> Method:
    """Drafts copied from the prompt and the text so far, where an n-gram recurs."""
    drafter, model = PromptLookup(ngram=ngram, length=length), context.graft.model
    return context.method(
        "prompt lookup",
        lambda p, s: generate(model, p, s, drafter=drafter),
        {"drafter": "prompt-lookup", "ngram": ngram, "length": length},
        stream=False,
    )


@method("draft-model")
def draft_model(context: MethodContext, *, model: Path, length: int = 4) -> Method:
    """Drafts by the greedy continuation of a smaller language model."""
    smaller = context.models.language_model(model)
    drafter, graft = DraftModel(smaller.model, length), context.graft.model
    return context.method(
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
