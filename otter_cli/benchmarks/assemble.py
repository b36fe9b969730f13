"""Benchmarks from folders: models loaded once, checked to be comparable, and made into methods."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from otter_cli.benchmarks import detectors, methods
from otter_cli.benchmarks.benchmark import PLAIN, Method, Setting
from otter_cli.benchmarks.detection import Detection
from otter_cli.benchmarks.detox import Detox, require_label
from otter_cli.benchmarks.labelled_texts import Stream, encode_streams
from otter_cli.benchmarks.models import (
    Grafted,
    load_graft,
    load_pair,
    load_reward_model,
    require_same_base,
)
from otter_cli.benchmarks.preference import GOLD, SWEPT, Preference, require_guides_nothing
from otter_cli.benchmarks.prompts import PromptFile, load_prompts
from otter_cli.benchmarks.scorers import Scorer
from otter_cli.benchmarks.speedup import Speedup
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
) -> Preference:
    """Plain and by each guide; `gold` is a reward model's folder or a rule."""
    from otter_cli.benchmarks.scorers.reward_model import RewardModelScorer
    from otter_cli.benchmarks.scorers.signal import SignalScorer

    graft, head = grafts
    device, signal = str(graft.model.device), guidance.signal
    separate = load_reward_model(reward_model, device=device)
    judge = (
        RewardModelScorer(*load_reward_model(gold, device=device))
        if isinstance(gold, Path)
        else gold
    )
    scorers: dict[str, Scorer] = {
        GOLD: judge,
        INSERTION: SignalScorer(graft, signal),
        HEAD: SignalScorer(head, signal),
        ARGS: RewardModelScorer(*separate),
    }
    guides = {scorer.record.digest: role for role, scorer in scorers.items() if role != GOLD}
    require_guides_nothing(judge.record.digest, guides)
    compared = {
        **_guided(grafts, guidance),
        **_swept(graft, guidance),
        ARGS: methods.args(
            graft,
            separate[0],
            separate[2],
            strength=guidance.of(ARGS),
            candidates=guidance.candidates,
        ),
    }
    return Preference(setting, graft, compared, scorers)


def _swept(graft: Grafted, guidance: Guidance) -> dict[str, Method]:
    return {
        f"{INSERTION}{SWEPT}{strength:g}": methods.guided(
            f"insertion, strength {strength:g}",
            graft,
            guidance.signal,
            strength=strength,
            candidates=guidance.candidates,
        )
        for strength in guidance.sweep
    }


def detox(grafts: Pair, setting: Setting, guidance: Guidance, *, detoxify: Path) -> Detox:
    """Sampled, plain and guided away: the strength is negative."""
    from otter_cli.benchmarks.scorers.detoxify import DetoxifyScorer

    scorer = DetoxifyScorer(detoxify, device=str(grafts[0].model.device))
    require_label(scorer)
    return Detox(setting, grafts[0], _guided(grafts, guidance), {"detoxify": scorer})


def speedup(grafts: Pair, setting: Setting, *, signal: str) -> Speedup:
    """Greedy, plain and with each drafter."""
    graft, head = grafts
    compared = {
        PLAIN: methods.plain(graft),
        INSERTION: methods.drafted("insertion", graft, signal),
        HEAD: methods.drafted("task head only", head, signal),
        LOOKUP: methods.prompt_lookup(graft),
    }
    return Speedup(setting, graft, compared, {})


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


def _guided(grafts: Pair, guidance: Guidance) -> dict[str, Method]:
    """Plain, then guided by the insertion's signal and by the task head's."""
    graft, head = grafts

    def guided(label: str, by: Grafted, method: str) -> Method:
        return methods.guided(
            label,
            by,
            guidance.signal,
            strength=guidance.of(method),
            candidates=guidance.candidates,
        )

    return {
        PLAIN: methods.plain(graft),
        INSERTION: guided("insertion", graft, INSERTION),
        HEAD: guided("task head only", head, HEAD),
    }
