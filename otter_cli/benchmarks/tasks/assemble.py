"""Benchmarks from folders: models loaded once, checked to be comparable, turned into methods.

Benchmarks of generation share a graft, its task-head control and the guides' strengths.
Detection compares monitors on one base."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from otter_cli.benchmarks.benchmark import BenchmarkSetting, Method
from otter_cli.benchmarks.methods import detectors
from otter_cli.benchmarks.methods.specs import DEFAULT_CANDIDATES, MethodSpec, build_methods
from otter_cli.benchmarks.model_pool import ModelPool, load_graft_and_task_head
from otter_cli.benchmarks.prompts import PromptFile, load_prompts
from otter_cli.benchmarks.records import (
    ARGS,
    INSERTION,
    PLAIN,
    PROMPT_LOOKUP,
    TASK_HEAD,
    method_family,
)
from otter_cli.benchmarks.tasks.detection import Detection, MonitoredTexts, encode_texts
from otter_cli.benchmarks.tasks.detox import Detox, require_toxicity_label
from otter_cli.benchmarks.tasks.preference import (
    COHERENCE,
    GOLD,
    Preference,
    require_independent_judge,
)
from otter_cli.benchmarks.tasks.speedup import Speedup
from otter_cli.core.console import warn
from otter_cli.decoding.sampling import Sampling
from otter_cli.scorers.load import (
    LoadedGraft,
    load_graft,
    load_recorded_reward_model,
    require_same_base,
)
from otter_cli.scorers.scorer import Scorer

GraftAndTaskHead = tuple[LoadedGraft, LoadedGraft]


@dataclass(frozen=True)
class Guidance:
    """How strongly each guide pulls: signals differ in scale, so each may have its own strength."""

    signal: str
    strength: float
    candidates: int = DEFAULT_CANDIDATES
    head_strength: float | None = None
    args_strength: float | None = None
    # The insertion at more strengths: what more reward costs in log-probability.
    sweep: tuple[float, ...] = ()
    # Whether the signal has learnt to read the end of a text (a recipe's `eos`).
    end: bool = True

    def of(self, method: str) -> float:
        own = {TASK_HEAD: self.head_strength, ARGS: self.args_strength}.get(method)
        return self.strength if own is None else own


def load_setting(
    folder: Path,
    task_head: Path,
    signal: str,
    file: PromptFile,
    sampling: Sampling,
    *,
    repeats: int = 1,
    batch: int = 1,
    together: int = 1,
    seed: int = 0,
    device: str = "cpu",
) -> tuple[GraftAndTaskHead, BenchmarkSetting]:
    """The insertion and its control, and the prompts that both get. Raises OtterError."""
    grafts = load_graft_and_task_head(folder, task_head, signal, device)
    prompts, record = load_prompts(
        file,
        grafts[0].tokenizer,
        positions=grafts[0].model.shape.max_positions,
        new_tokens=sampling.max_new_tokens,
    )
    return grafts, BenchmarkSetting(prompts, record, sampling, repeats, batch, seed, together)


def guided_specs(grafts: GraftAndTaskHead, guidance: Guidance) -> list[MethodSpec]:
    """Plain, then guided by the insertion's signal and by the task head's."""
    of = {
        INSERTION: ("insertion", grafts[0]),
        TASK_HEAD: ("task head only", grafts[1]),
    }
    guided = [
        MethodSpec(
            name,
            "value",
            {
                "strength": guidance.of(name),
                "candidates": guidance.candidates,
                "end": guidance.end,
            },
            label,
            graft,
        )
        for name, (label, graft) in of.items()
    ]
    return [MethodSpec(PLAIN, "plain"), *guided]


def guide_scorers(methods: Mapping[str, Method]) -> dict[str, Scorer]:
    """What guides, each once, under the name of the first method that it guides."""
    found: dict[str, Scorer] = {}
    for name, method in methods.items():
        known = [scorer.record.digest for scorer in found.values()]
        if method.judge is not None and method.judge.record.digest not in known:
            found[method_family(name)] = method.judge
    return found


def assemble_preference(
    grafts: GraftAndTaskHead,
    setting: BenchmarkSetting,
    guidance: Guidance,
    *,
    reward_model: Path,
    gold: Scorer | Path,
    encoder: Path | None = None,
    more: Sequence[MethodSpec] = (),
) -> Preference:
    """Plain and by each guide, and by `more`; `gold` is a reward model's folder or a rule."""
    from otter_cli.scorers.response_models import EncoderScorer, RewardModelScorer

    models = ModelPool(grafts[0], guidance.signal)
    judge = RewardModelScorer(*models.reward_model(gold)) if isinstance(gold, Path) else gold
    steering = {"strength": guidance.of(ARGS), "candidates": guidance.candidates}
    by_args = MethodSpec(ARGS, "args", {"model": reward_model, **steering}, "ARGS")
    specs = guided_specs(grafts, guidance)
    swept = [specs[1].at(strength) for strength in guidance.sweep]
    methods = build_methods([*specs, *swept, by_args, *more], models, guidance.candidates)
    guides = {model.weights: name for name, m in methods.items() for model in m.record.models}
    require_independent_judge(judge.record.digest, guides)
    coherence = {COHERENCE: EncoderScorer(encoder, device=models.device)} if encoder else {}
    return Preference(
        setting, grafts[0], methods, {GOLD: judge, **guide_scorers(methods), **coherence}
    )


def assemble_detox(
    grafts: GraftAndTaskHead,
    setting: BenchmarkSetting,
    guidance: Guidance,
    *,
    detoxify: Path,
    more: Sequence[MethodSpec] = (),
) -> Detox:
    """Sampled, plain and guided away: the strength is negative."""
    from otter_cli.scorers.detoxify import DetoxifyScorer

    scorer = DetoxifyScorer(detoxify, device=str(grafts[0].model.device))
    require_toxicity_label(scorer)
    models = ModelPool(grafts[0], guidance.signal)
    methods = build_methods([*guided_specs(grafts, guidance), *more], models, guidance.candidates)
    return Detox(setting, grafts[0], methods, {"detoxify": scorer})


def assemble_speedup(
    grafts: GraftAndTaskHead,
    setting: BenchmarkSetting,
    *,
    signal: str,
    more: Sequence[MethodSpec] = (),
) -> Speedup:
    """Plain and with each drafter; a task head's drafts are Medusa-1."""
    graft, head = grafts
    specs = [
        MethodSpec(PLAIN, "plain"),
        MethodSpec(INSERTION, "future", label="insertion"),
        MethodSpec(TASK_HEAD, "future", label="task head only", graft=head),
        MethodSpec(PROMPT_LOOKUP, "prompt-lookup"),
    ]
    return Speedup(setting, graft, build_methods([*specs, *more], ModelPool(graft, signal)), {})


def _warn_of_possible_overlap(graft: LoadedGraft, signal: str, texts: MonitoredTexts) -> None:
    """Another file, limit or version of the split leaves other rows aside than training did."""
    record = graft.model.manifest.training.get(signal)
    trained = (record.data.get("held_out") or {}) if record else {}
    if texts.held_out and "sha256" in trained and trained["sha256"] != texts.held_out:
        warn(
            f"{graft.record.name}: the rows that this recipe holds out are not those that "
            f"{signal!r} was trained without: some of these texts may be its training rows"
        )


def assemble_detection(
    folder: Path,
    texts: MonitoredTexts,
    signal: str,
    *,
    limit: int | None = None,
    limit_seed: int = 0,
    monitors: Mapping[str, Path] | None = None,
    classifier: Path | None = None,
    device: str = "cpu",
) -> Detection:
    """The graft's signal beside other grafts' (task heads), probes and a separate classifier."""
    from otter_cli.training.baselines.readouts import PROBE_FILE

    graft = load_graft(folder, signal, device=device)
    _warn_of_possible_overlap(graft, signal, texts)
    prompts, record = encode_texts(
        texts.streams, texts.file, graft.tokenizer,
        positions=graft.model.shape.max_positions, limit=limit, limit_seed=limit_seed,
    )  # fmt: skip
    compared = {
        PLAIN: detectors.base_detector(graft),
        INSERTION: detectors.signal_detector("insertion", graft, signal),
    }
    for name, path in (monitors or {}).items():
        if (path / PROBE_FILE).is_file():
            compared[name] = detectors.probe_detector(name, graft, path, signal)
            continue
        other = load_graft(path, signal, device=device)
        require_same_base(graft, other, path)
        _warn_of_possible_overlap(other, signal, texts)
        compared[name] = detectors.signal_detector(name, other, signal)
    if classifier is not None:
        separate, _, model = load_recorded_reward_model(classifier, device=device)
        compared["classifier"] = detectors.classifier_detector("classifier", graft, separate, model)
    return Detection(BenchmarkSetting(prompts, record, Sampling(1)), graft, compared, {})
