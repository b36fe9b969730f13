"""From options to a benchmark: models are loaded once, checked to be comparable, made into methods.

Benchmarks that generate share a graft, its task-head control and the guides' strengths. Detection
compares monitors on one base."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from otter_cli.benchmarks.benchmark import Benchmark, BenchmarkSetting, Method
from otter_cli.benchmarks.methods import detectors
from otter_cli.benchmarks.methods.specs import MethodSpec, build_methods, parse_methods
from otter_cli.benchmarks.model_pool import (
    ModelPool,
    baseline_command,
    load_graft_and_task_head,
)
from otter_cli.benchmarks.options import (
    BenchmarkOptions,
    DetectionOptions,
    DetoxOptions,
    Guidance,
    PreferenceOptions,
    SpeedupOptions,
)
from otter_cli.benchmarks.prompts import load_prompts
from otter_cli.benchmarks.records import (
    ARGS,
    INSERTION,
    PLAIN,
    PROMPT_LOOKUP,
    TASK_HEAD,
    method_family,
)
from otter_cli.benchmarks.tasks.detection import (
    Detection,
    MonitoredTexts,
    encode_texts,
    load_monitored_texts,
)
from otter_cli.benchmarks.tasks.detox import Detox, require_toxicity_label
from otter_cli.benchmarks.tasks.preference import (
    COHERENCE,
    GOLD,
    Preference,
    require_independent_judge,
)
from otter_cli.benchmarks.tasks.speedup import Speedup
from otter_cli.core.console import say, warn
from otter_cli.core.errors import OtterError
from otter_cli.decoding.sampling import Sampling
from otter_cli.scorers.load import (
    LoadedGraft,
    load_graft,
    load_reward_model,
    require_same_base,
)
from otter_cli.scorers.scorer import Scorer

AnyOptions = PreferenceOptions | DetoxOptions | DetectionOptions | SpeedupOptions
GraftAndTaskHead = tuple[LoadedGraft, LoadedGraft | None]


def assemble(options: AnyOptions) -> Benchmark:
    """The benchmark that the options describe, with its models loaded. Raises OtterError."""
    if isinstance(options, DetectionOptions):
        return assemble_detection(options, load_monitored_texts(options))
    grafts, setting = load_setting(options, _sampling(options))
    _say_left_out(options)
    more = parse_methods(options.method)
    if isinstance(options, SpeedupOptions):
        return assemble_speedup(grafts, setting, signal=options.signal, more=more)
    if isinstance(options, DetoxOptions):
        return assemble_detox(grafts, setting, options, detoxify=options.detoxify, more=more)
    return assemble_preference(
        grafts,
        setting,
        options,
        reward_model=options.reward_model,
        gold=options.gold,
        encoder=options.encoder,
        more=more,
    )


def _say_left_out(options: BenchmarkOptions) -> None:
    """Names each method that needs a baseline which was not given, and how to train it."""
    missing = []
    if options.task_head is None:
        missing.append(("task head only", "--task-head", "head"))
    if isinstance(options, PreferenceOptions) and options.reward_model is None:
        missing.append(("ARGS", "--reward-model", "separate"))
    for label, option, baseline in missing:
        say(
            f"left out: {label}, which needs {option}. To compare with it, train it on the graft's "
            f"data: {baseline_command(options.folder, baseline)}"
        )


def _sampling(options: BenchmarkOptions) -> Sampling:
    """Plain decoding samples from as many candidates as a guide scores: otherwise the difference
    could come from the number of candidates, and not from the guide."""
    top_k, top_p = 0, 1.0
    if isinstance(options, DetoxOptions):
        top_k, top_p = options.candidates, options.top_p
    elif isinstance(options, PreferenceOptions) and options.temperature:
        top_k = options.candidates
    return Sampling(options.max_new_tokens, options.temperature, top_k=top_k, top_p=top_p)


def load_setting(
    options: BenchmarkOptions, sampling: Sampling
) -> tuple[GraftAndTaskHead, BenchmarkSetting]:
    """The graft and its task-head control, and the prompts of every method. Raises OtterError."""
    grafts = load_graft_and_task_head(
        options.folder, options.task_head, options.signal, options.device
    )
    prompts, record = load_prompts(
        options,
        grafts[0].tokenizer,
        positions=grafts[0].model.shape.max_positions,
        new_tokens=sampling.max_new_tokens,
    )
    setting = BenchmarkSetting(
        prompts,
        record,
        sampling,
        samples_per_prompt=options.samples_per_prompt,
        batch=options.batch,
        seed=options.seed,
        prompts_per_call=options.together,
    )
    return grafts, setting


def guided_specs(grafts: GraftAndTaskHead, guidance: Guidance) -> list[MethodSpec]:
    """Plain decoding, then guidance by the insertion's signal, and by the task head's if any."""
    insertion, head = grafts
    shared = {"candidates": guidance.candidates, "end": guidance.end}
    own = {"strength": guidance.strength, **shared}
    heads = {"strength": guidance.strength_or(guidance.head_strength), **shared}
    specs = [
        MethodSpec(PLAIN, "plain"),
        MethodSpec(INSERTION, "value", own, "insertion", insertion),
    ]
    if head is not None:
        specs.append(MethodSpec(TASK_HEAD, "value", heads, "task head only", head))
    return specs


def guide_scorers(methods: Mapping[str, Method]) -> dict[str, Scorer]:
    """The scorers behind the guides, each once, by the first method that it guides."""
    scorers: dict[str, Scorer] = {}
    for name, method in methods.items():
        known = [scorer.record.digest for scorer in scorers.values()]
        if method.judge is not None and method.judge.record.digest not in known:
            scorers[method_family(name)] = method.judge
    return scorers


def assemble_preference(
    grafts: GraftAndTaskHead,
    setting: BenchmarkSetting,
    guidance: Guidance,
    *,
    reward_model: Path | None = None,
    gold: Scorer | Path,
    encoder: Path | None = None,
    more: Sequence[MethodSpec] = (),
) -> Preference:
    """Plain decoding, each guide, and `more` methods. `gold` is a reward model's folder, or a
    scorer such as a rule. Raises OtterError where the judge guides a method."""
    from otter_cli.scorers.response_models import EncoderScorer, RewardModelScorer

    models = ModelPool(grafts[0], guidance.signal)
    judge = RewardModelScorer(*models.reward_model(gold)) if isinstance(gold, Path) else gold
    steering = {
        "strength": guidance.strength_or(guidance.args_strength),
        "candidates": guidance.candidates,
    }
    by_args = [MethodSpec(ARGS, "args", {"model": reward_model, **steering}, "ARGS")]
    specs = guided_specs(grafts, guidance)
    swept = [specs[1].at(strength) for strength in guidance.sweep]
    methods = build_methods(
        [*specs, *swept, *(by_args if reward_model else []), *more], models, guidance.candidates
    )
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
    """Plain decoding and guidance away from toxicity, by a negative strength."""
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
    """Plain decoding and each drafter. Drafts by a task head are Medusa-1."""
    graft, head = grafts
    specs = [
        MethodSpec(PLAIN, "plain"),
        MethodSpec(INSERTION, "future", label="insertion"),
        MethodSpec(PROMPT_LOOKUP, "prompt-lookup"),
    ]
    if head is not None:
        by_head = MethodSpec(TASK_HEAD, "future", label="task head only", graft=head)
        specs.insert(2, by_head)
    return Speedup(setting, graft, build_methods([*specs, *more], ModelPool(graft, signal)), {})


def _warn_of_possible_overlap(graft: LoadedGraft, signal: str, texts: MonitoredTexts) -> None:
    """Another file, limit or version of the split holds out other rows than the training did."""
    record = graft.model.manifest.training.get(signal)
    trained = (record.data.get("held_out") or {}) if record else {}
    if texts.held_out and "sha256" in trained and trained["sha256"] != texts.held_out:
        warn(
            f"{graft.record.name}: the rows that this recipe holds out are not those that "
            f"{signal!r} was trained without: some of these texts may be its training rows"
        )


def assemble_detection(options: DetectionOptions, texts: MonitoredTexts) -> Detection:
    """The graft's signal beside other grafts' (task heads), probes and a separate classifier."""
    from otter_cli.training.baselines.readouts import PROBE_FILE

    monitors = dict(map(_name_and_folder, options.monitor))
    signal, device = options.signal, options.device
    graft = load_graft(options.folder, signal, device=device)
    _warn_of_possible_overlap(graft, signal, texts)
    prompts, record = encode_texts(
        texts, graft.tokenizer,
        positions=graft.model.shape.max_positions,
        limit=options.limit, limit_seed=options.limit_seed,
    )  # fmt: skip
    methods = {
        PLAIN: detectors.base_detector(graft),
        INSERTION: detectors.signal_detector("insertion", graft, signal),
    }
    for name, path in monitors.items():
        if (path / PROBE_FILE).is_file():
            methods[name] = detectors.probe_detector(name, graft, path, signal)
            continue
        other = load_graft(path, signal, device=device)
        require_same_base(graft, other, path)
        _warn_of_possible_overlap(other, signal, texts)
        methods[name] = detectors.signal_detector(name, other, signal)
    if options.classifier is not None:
        separate, _, model = load_reward_model(options.classifier, device=device)
        methods["classifier"] = detectors.classifier_detector("classifier", graft, separate, model)
    return Detection(BenchmarkSetting(prompts, record, Sampling(1)), graft, methods, {})


def _name_and_folder(text: str) -> tuple[str, Path]:
    name, equals, folder = text.partition("=")
    if not (name and equals and folder):
        raise OtterError(f"--monitor {text!r} is no NAME=FOLDER", hint="for example head=head-only")
    return name, Path(folder)
