"""Benchmarks from folders: models loaded once, checked to be comparable, and made into methods."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from otter_cli.benchmarks import detectors
from otter_cli.benchmarks.benchmark import Method, Setting
from otter_cli.benchmarks.detection import Detection
from otter_cli.benchmarks.detox import Detox, require_label
from otter_cli.benchmarks.labelled_texts import Stream, encode_streams
from otter_cli.benchmarks.method_specs import MethodSpec, build
from otter_cli.benchmarks.models import (
    Grafted,
    Models,
    load_graft,
    load_pair,
    load_reward_model,
    require_same_base,
)
from otter_cli.benchmarks.names import PLAIN, family
from otter_cli.benchmarks.preference import COHERENCE, GOLD, Preference, require_guides_nothing
from otter_cli.benchmarks.prompts import PromptFile, load_prompts
from otter_cli.benchmarks.scorers import Scorer
from otter_cli.benchmarks.speedup import Speedup
from otter_cli.checkpoint.listing import MANIFEST
from otter_cli.decoding import Sampling

Pair = tuple[Grafted, Grafted]

INSERTION, HEAD, ARGS, LOOKUP = "insertion", "task-head", "args", "prompt-lookup"


@dataclass(frozen=True)
class Texts:
    """Labelled texts and the file that they are from."""

    file: Path
    streams: Sequence[Stream]


@dataclass(frozen=True)
class Guidance:
    """How strongly each guide pulls: signals differ in scale, so each may have its own strength."""

    signal: str
    strength: float
    candidates: int = 10
    head_strength: float | None = None
    args_strength: float | None = None
    # The insertion at more strengths: what more reward costs in log-probability.
    sweep: tuple[float, ...] = ()

    def of(self, method: str) -> float:
        own = {HEAD: self.head_strength, ARGS: self.args_strength}.get(method)
        return self.strength if own is None else own


def prepare(
    folder: Path,
    task_head: Path,
    signal: str,
    file: PromptFile,
    sampling: Sampling,
    *,
    repeats: int = 1,
    batch: int = 1,
    seed: int = 0,
    device: str = "cpu",
) -> tuple[Pair, Setting]:
    """The insertion and its control, and the prompts that both get. Raises OtterError."""
    grafts = load_pair(folder, task_head, signal, device)
    prompts, record = load_prompts(
        file,
        grafts[0].tokenizer,
        positions=grafts[0].model.shape.max_positions,
        new_tokens=sampling.max_new_tokens,
    )
    return grafts, Setting(prompts, record, sampling, repeats, batch, seed)


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
    specs = _guided(grafts, guidance)
    swept = [specs[1].at(strength) for strength in guidance.sweep]
    methods = build([*specs, *swept, by_args, *more], models)
    guides = {model.weights: name for name, m in methods.items() for model in m.record.models}
    require_guides_nothing(judge.record.digest, guides)
    coherence = {COHERENCE: EncoderScorer(encoder, device=models.device)} if encoder else {}
    return Preference(setting, grafts[0], methods, {GOLD: judge, **_judges(methods), **coherence})


def judges(graft: Grafted, signal: str, others: Mapping[str, Path]) -> dict[str, Scorer]:
    """The graft's signal, and other folders: grafts by theirs, reward models. Raises OtterError."""
    from otter_cli.benchmarks.scorers.reward_model import RewardModelScorer
    from otter_cli.benchmarks.scorers.signal import SignalScorer

    models = Models(graft, signal)
    found: dict[str, Scorer] = {INSERTION: SignalScorer(graft, signal)}
    for name, folder in others.items():
        if (folder / MANIFEST).is_file():
            found[name] = SignalScorer(models.grafted(folder, signal), signal)
        else:
            found[name] = RewardModelScorer(*models.reward_model(folder))
    return found


def _judges(methods: Mapping[str, Method]) -> dict[str, Scorer]:
    """What guides, each once, under the name of the first method that it guides."""
    found: dict[str, Scorer] = {}
    for name, method in methods.items():
        known = [scorer.record.digest for scorer in found.values()]
        if method.judge is not None and method.judge.record.digest not in known:
            found[family(name)] = method.judge
    return found


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
    methods = build([*_guided(grafts, guidance), *more], Models(grafts[0], guidance.signal))
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


def detection(
    folder: Path,
    texts: Texts,
    signal: str,
    *,
    limit: int | None = None,
    monitors: Mapping[str, Path] | None = None,
    classifier: Path | None = None,
    device: str = "cpu",
) -> Detection:
    """The graft's signal beside other grafts' (task heads, probes) and a separate classifier."""
    graft = load_graft(folder, signal, device=device)
    prompts, record = encode_streams(
        texts.streams, texts.file, graft.tokenizer,
        positions=graft.model.shape.max_positions, limit=limit,
    )  # fmt: skip
    compared = {
        PLAIN: detectors.base_alone(graft),
        INSERTION: detectors.by_signal("insertion", graft, signal),
    }
    for name, path in (monitors or {}).items():
        other = load_graft(path, signal, device=device)
        require_same_base(graft, other, path)
        compared[name] = detectors.by_signal(name, other, signal)
    if classifier is not None:
        separate, _, model = load_reward_model(classifier, device=device)
        compared["classifier"] = detectors.by_classifier("classifier", graft, separate, model)
    return Detection(Setting(prompts, record, Sampling(1)), graft, compared, {})


def _guided(grafts: Pair, guidance: Guidance) -> list[MethodSpec]:
    """Plain, then guided by the insertion's signal and by the task head's."""
    of = {
        INSERTION: ("insertion", grafts[0]),
        HEAD: ("task head only", grafts[1]),
    }
    guided = [
        MethodSpec(
            name,
            "value",
            {"strength": guidance.of(name), "candidates": guidance.candidates},
            label,
            graft,
        )
        for name, (label, graft) in of.items()
    ]
    return [MethodSpec(PLAIN, "plain"), *guided]
