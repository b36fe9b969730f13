"""Benchmarks from folders: models loaded once, checked to be comparable, and made into methods."""

from collections.abc import Sequence
from pathlib import Path

from otter_cli.benchmarks.benchmark import Setting
from otter_cli.benchmarks.contest import ARGS, HEAD, INSERTION, LOOKUP, Guidance, Pair, guided
from otter_cli.benchmarks.detox import Detox, require_label
from otter_cli.benchmarks.judges import guiding
from otter_cli.benchmarks.method_specs import MethodSpec, build
from otter_cli.benchmarks.models import Models
from otter_cli.benchmarks.names import PLAIN
from otter_cli.benchmarks.preference import COHERENCE, GOLD, Preference, require_guides_nothing
from otter_cli.benchmarks.scorers import Scorer
from otter_cli.benchmarks.speedup import Speedup


def preference(
    grafts: Pair,
    setting: Setting,
    guidance: Guidance,
    *,
    reward_model: Path,
    gold: Scorer | Path,
    encoder: Path | None = None,
    more: Sequence[MethodSpec] = (),
) -> Preference:
    """Plain and by each guide, and by `more`; `gold` is a reward model's folder or a rule."""
    from otter_cli.benchmarks.scorers.encoder import EncoderScorer
    from otter_cli.benchmarks.scorers.reward_model import RewardModelScorer

    models = Models(grafts[0], guidance.signal)
    judge = RewardModelScorer(*models.reward_model(gold)) if isinstance(gold, Path) else gold
    steering = {"strength": guidance.of(ARGS), "candidates": guidance.candidates}
    by_args = MethodSpec(ARGS, "args", {"model": reward_model, **steering}, "ARGS")
    specs = guided(grafts, guidance)
    swept = [specs[1].at(strength) for strength in guidance.sweep]
    methods = build([*specs, *swept, by_args, *more], models, guidance.candidates)
    guides = {model.weights: name for name, m in methods.items() for model in m.record.models}
    require_guides_nothing(judge.record.digest, guides)
    coherence = {COHERENCE: EncoderScorer(encoder, device=models.device)} if encoder else {}
    return Preference(setting, grafts[0], methods, {GOLD: judge, **guiding(methods), **coherence})


def detox(
    grafts: Pair,
    setting: Setting,
    guidance: Guidance,
    *,
    detoxify: Path,
    more: Sequence[MethodSpec] = (),
) -> Detox:
    """Sampled, plain and guided away: the strength is negative."""
    from otter_cli.benchmarks.scorers.detoxify import DetoxifyScorer

    scorer = DetoxifyScorer(detoxify, device=str(grafts[0].model.device))
    require_label(scorer)
    models = Models(grafts[0], guidance.signal)
    methods = build([*guided(grafts, guidance), *more], models, guidance.candidates)
    return Detox(setting, grafts[0], methods, {"detoxify": scorer})


def speedup(
    grafts: Pair, setting: Setting, *, signal: str, more: Sequence[MethodSpec] = ()
) -> Speedup:
    """Plain and with each drafter; a task head's drafts are Medusa-1."""
    graft, head = grafts
    specs = [
        MethodSpec(PLAIN, "plain"),
        MethodSpec(INSERTION, "future", label="insertion"),
        MethodSpec(HEAD, "future", label="task head only", graft=head),
        MethodSpec(LOOKUP, "prompt-lookup"),
    ]
    return Speedup(setting, graft, build([*specs, *more], Models(graft, signal)), {})
