"""The demo on a real small model. Every step can be resumed.

The base continues prompts, VADER labels the texts, and an insertion learns to score them. Then the
base continues test prompts in three ways: plain, guided in one pass, and guided by a second model.
"""

from __future__ import annotations

import json
import random
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from otter_cli.core.atomic import write_json, write_text
from otter_cli.core.errors import OtterError
from otter_cli.core.process import derive_seed
from otter_cli.core.strict_files import read_own_json_object, read_yaml
from otter_cli.demo import sentiment_lexicons
from otter_cli.demo.steps import StepTimer, graft_base, verify_graft

if TYPE_CHECKING:
    from otter_cli.benchmarks.results import BenchmarkResult
    from otter_cli.graft.price import Price
    from otter_cli.training.run import TrainResult
    from otter_cli.verification.report import Verdict, VerificationReport


_PROMPTS = read_yaml(Path(__file__).with_name("sentiment_prompts.yaml"), hint="install otter again")
TEST_SUBJECTS: list[str] = _PROMPTS["test_subjects"]


def training_prompts() -> list[str]:
    return _fill_openings(_PROMPTS["training_subjects"])


def held_out_prompts() -> list[str]:
    return _fill_openings(TEST_SUBJECTS)


def _fill_openings(subjects: list[str]) -> list[str]:
    return [opening.format(subject) for opening in _PROMPTS["openings"] for subject in subjects]


LABELLER = "python:otter_cli.demo.sentiment_lexicons:vader"
VALUE_SIGNAL, ACTION_SIGNAL = "sentiment", "next"
SIGNALS = (f"{VALUE_SIGNAL}=value", f"{ACTION_SIGNAL}=action-reward")
SIZES: dict[str, Any] = {"hidden": 16, "heads": 1, "ffn": 40}
METHODS = {"plain": "plain", "one-pass": "otter, one pass", "args": "ARGS, a second model"}


@dataclass(frozen=True)
class DemoScale:
    """Counts and strengths of a run, at the size of the whole demo."""

    prompts: int = 120
    samples: int = 8
    tokens: int = 20
    steps: int = 100
    batch: int = 32
    test_prompts: int = 32
    new_tokens: int = 24
    strength: float = 40.0
    args_strength: float = 40.0


FULL_SCALE = DemoScale()
QUICK_SCALE = DemoScale(prompts=40, samples=6, steps=50, batch=16, test_prompts=12)
STEPS = ("graft", "write", "train", "train ARGS's model", "verify", "compare")


@dataclass(frozen=True)
class SentimentDemo:
    """The result of each step, and its duration in seconds."""

    folder: Path
    base: Path
    price: Price
    trained: dict[str, TrainResult]
    verification: VerificationReport
    verdict: Verdict
    result: BenchmarkResult
    seconds: dict[str, float]

    def record(self) -> dict[str, Any]:
        """The results as JSON has them."""
        return {
            "graft": self.price.record(),
            "train": {name: vars(run) for name, run in self.trained.items()},
            "verify": {"verdict": self.verdict.name},
            "bench": self.result.model_dump(mode="json"),
            "seconds": self.seconds,
        }


def run_sentiment_demo(
    folder: Path, base: Path, *, scale: DemoScale = FULL_SCALE, seed: int = 0
) -> SentimentDemo:
    """Runs the demo in `folder`, or resumes it: finished steps are kept.

    Raises OtterError, also for a folder that holds a run with another base, seed or scale.
    """
    sentiment_lexicons.require_lexicons()
    folder.mkdir(parents=True, exist_ok=True)
    _check_settings(folder / "demo.json", {"seed": seed, **asdict(scale)})
    timer = StepTimer(STEPS)
    grafted, data, trained = folder / "grafted", folder / "data", {}
    data.mkdir(exist_ok=True)
    with timer.step("graft"):
        price = _graft(base, grafted)
    with timer.step("write"):
        texts = _write_training_texts(grafted, data, scale, seed)
    with timer.step("train"):
        trained["insertion"] = _train(grafted, texts, scale, seed)
    with timer.step("train ARGS's model"):
        trained["lora"] = _train(grafted, texts, scale, seed, to=folder / "lora")
    with timer.step("verify"):
        report, verdict = _verify(grafted, folder / "proof.json")
    with timer.step("compare"):
        result = _compare(folder, scale, seed)
    return SentimentDemo(folder, base, price, trained, report, verdict, result, timer.seconds)


def _check_settings(record: Path, settings: dict[str, Any]) -> None:
    """Records the settings of the folder's run, or compares them: runs must not be mixed. Raises
    OtterError."""
    if not record.exists():
        write_json(record, settings)
        return
    recorded = read_own_json_object(record)
    differing = [name for name, value in settings.items() if recorded.get(name) != value]
    if differing:
        raise OtterError(
            f"{record.parent} holds a run with other settings: {', '.join(differing)}",
            hint="give the same options as before, or another folder",
        )


def _check_base(base: Path, grafted: Path) -> None:
    from otter_cli.graft.grafted_folder import check_base_files
    from otter_cli.graft.manifest import Manifest

    try:
        check_base_files(grafted, Manifest.read(grafted), base=base)
    except OtterError as error:
        raise OtterError(
            f"{grafted.parent} holds a run with another base: {error.what}",
            hint="give the same --model as before, or another folder",
        ) from error


def _graft(base: Path, out: Path) -> Price:
    if out.exists():
        _check_base(base, out)
    return graft_base(base, out, source=base.name, signals=SIGNALS, init="normal", **SIZES)


def _write_training_texts(grafted: Path, folder: Path, scale: DemoScale, seed: int) -> Path:
    """The base continues the training prompts, and VADER labels each continuation. Returns the file
    of labelled texts."""
    from otter_cli.model.load import load_tokenizer
    from otter_cli.model.otter import OtterForCausalLM
    from otter_cli.teaching.continuations import ContinuationSettings
    from otter_cli.teaching.rows import TeachingSettings, teach

    texts = _draw_prompts(training_prompts(), scale.prompts, seed)
    file = folder / "training-prompts.txt"
    write_text(file, "".join(f"{text}\n" for text in texts))
    continuations = ContinuationSettings(scale.samples, scale.tokens, seed=seed)
    teaching = TeachingSettings(LABELLER, file, chat=False, continuations=continuations)
    model = OtterForCausalLM.from_pretrained(grafted)
    return teach(grafted, model, load_tokenizer(grafted), teaching, ["score"]).path


def _draw_prompts(texts: list[str], count: int, seed: int) -> list[str]:
    """A random choice of `count` texts, or all if there are fewer, in their order."""
    drawn = random.Random(derive_seed("demo", seed)).sample(
        range(len(texts)), min(count, len(texts))
    )
    return [texts[i] for i in sorted(drawn)]


def _train(
    grafted: Path, texts: Path, scale: DemoScale, seed: int, to: Path | None = None
) -> TrainResult:
    """Trains the insertion. With `to`, trains the separate LoRA reward model that ARGS needs, on
    the same texts and for as many steps."""
    from otter_cli.training.recipe import Recipe
    from otter_cli.training.run import train

    source = {"path": str(texts.resolve()), "text": "text", "labels": ["score"]}
    common = {"eos": False, "held_out": 0.1, "train": source}
    signals: dict[str, Any] = {VALUE_SIGNAL: {"objective": "pointwise", **common}}
    if to is None:
        signals[ACTION_SIGNAL] = {"objective": "action-values", **common}
    recipe = Recipe.model_validate(
        {
            "steps": scale.steps,
            "batch_size": scale.batch,
            # A LoRA step keeps activations of the whole model. Four smaller passes fit 3 GB.
            "accumulate": 4 if to else 1,
            "max_length": 64,
            "learning_rate": 1e-3,
            "seed": seed,
            "signals": signals,
        }
    )
    return train(grafted, recipe, resume=True, baseline="lora" if to else None, to=to)


def _verify(grafted: Path, proof: Path) -> tuple[VerificationReport, Verdict]:
    """Verifies in the dtype of the base's files, or in float32 if the grid lacks that dtype. The
    verb `otter verify` covers the other dtypes."""
    from otter_cli.checkpoint.folder import Checkpoint
    from otter_cli.verification.grid import Grid

    names = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
    dtype = names.get(Checkpoint.open(grafted).dtype, "float32")
    return verify_graft(grafted, proof, grid=Grid(dtypes=(dtype,), attentions=("sdpa",)))


def _compare(folder: Path, scale: DemoScale, seed: int) -> BenchmarkResult:
    """Each method in turn on each test prompt. AFINN judges the texts."""
    from otter_cli.benchmarks.benchmark import BenchmarkSetting
    from otter_cli.benchmarks.methods.specs import MethodSpec, build_methods
    from otter_cli.benchmarks.model_pool import ModelPool
    from otter_cli.benchmarks.options import PromptFile
    from otter_cli.benchmarks.prompts import load_prompts
    from otter_cli.benchmarks.runner.run_benchmark import run_benchmark
    from otter_cli.benchmarks.tasks.assemble import guide_scorers
    from otter_cli.benchmarks.tasks.preference import GOLD, Preference
    from otter_cli.decoding.sampling import Sampling
    from otter_cli.scorers.load import load_graft
    from otter_cli.scorers.scorer import RuleScorer

    file = folder / "data" / "prompts.jsonl"
    texts = _draw_prompts(held_out_prompts(), scale.test_prompts, seed)
    write_text(file, "".join(f"{json.dumps({'prompt': text})}\n" for text in texts))
    graft = load_graft(folder / "grafted", ACTION_SIGNAL, device="cpu")
    positions = graft.model.shape.max_positions
    loaded, record = load_prompts(
        PromptFile(prompts=file), graft.tokenizer, positions=positions, new_tokens=scale.new_tokens
    )
    sampling = Sampling(scale.new_tokens, temperature=0.8, top_p=0.95, ignore_eos=True)
    specs = [
        MethodSpec("plain", "plain", label=METHODS["plain"]),
        MethodSpec("one-pass", "vocabulary", {"strength": scale.strength}, METHODS["one-pass"]),
        MethodSpec(
            "args",
            "args",
            {"model": folder / "lora", "strength": scale.args_strength},
            METHODS["args"],
        ),
    ]
    methods = build_methods(specs, ModelPool(graft, ACTION_SIGNAL))
    judge = RuleScorer(
        "AFINN > 0", sentiment_lexicons.afinn_positive, digest=sentiment_lexicons.afinn_digest()
    )
    setting = BenchmarkSetting(loaded, record, sampling, seed=seed)
    scorers = {GOLD: judge, **guide_scorers(methods)}
    return run_benchmark(Preference(setting, graft, methods, scorers), folder / "compare").result
