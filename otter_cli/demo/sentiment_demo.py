"""The demo on a real small model: the steps from its own texts to the comparison, each resumable.

The base continues prompts, VADER labels the texts, an insertion learns to score them; then the same
test prompts are written plain, guided in one pass, and guided by a second model.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

from otter_cli.core.atomic import write_json, write_text
from otter_cli.core.console import say
from otter_cli.core.errors import OtterError
from otter_cli.core.formatting import seconds_text
from otter_cli.core.process import derive_seed
from otter_cli.core.strict_files import read_own_json_object
from otter_cli.demo import sentiment_lexicons

if TYPE_CHECKING:
    from otter_cli.benchmarks.results import BenchmarkResult
    from otter_cli.graft.price import Price
    from otter_cli.training.run import TrainResult
    from otter_cli.verification.report import Verdict
    from otter_cli.verification.report import VerificationReport as Verification


TRAINING_SUBJECTS = (
    "the new restaurant on Main Street",
    "my trip to the coast",
    "the film we saw last night",
    "my first week at the new job",
    "the concert in the park",
    "my neighbour's dog",
    "the phone I bought last month",
    "the train ride home",
    "our hotel room",
    "the book you lent me",
    "the football match",
    "my visit to the dentist",
    "the weather this week",
    "the meeting this morning",
    "our new flat",
    "the birthday party",
    "the museum exhibition",
    "my sister's wedding",
    "the customer service",
    "the online course",
    "the garden this year",
    "the school play",
    "the repair of my car",
    "the long flight",
    "the city market",
    "my old laptop",
    "the new teacher",
    "the hiking trip",
    "the family dinner",
    "the software update",
)
# The test prompts speak of subjects that no training prompt names.
TEST_SUBJECTS = (
    "the coffee at the station",
    "my running shoes",
    "the hospital staff",
    "the winter holidays",
    "the delivery",
    "the local library",
    "the video game",
    "the job interview",
)
OPENINGS = (
    "When I think about {}, I",
    "Honestly, {} was",
    "I have to tell you about {}. It",
    "After a while, {} became",
)


def training_prompts() -> list[str]:
    return _fill_openings(TRAINING_SUBJECTS)


def held_out_prompts() -> list[str]:
    return _fill_openings(TEST_SUBJECTS)


def _fill_openings(subjects: tuple[str, ...]) -> list[str]:
    return [opening.format(subject) for opening in OPENINGS for subject in subjects]


LABELLER = "python:otter_cli.demo.sentiment_lexicons:vader"
VALUE_SIGNAL, ACTION_SIGNAL = "sentiment", "next"
SIGNALS = (f"{VALUE_SIGNAL}=value", f"{ACTION_SIGNAL}=action-reward")
SIZES: dict[str, Any] = {"hidden": 16, "heads": 1, "ffn": 40}
METHODS = {"plain": "plain", "one-pass": "otter, one pass", "args": "ARGS, a second model"}


@dataclass(frozen=True)
class DemoScale:
    """How much of everything: the whole demo, or the quick one."""

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


@dataclass
class SentimentDemo:
    """What each step gave; `seconds` by step."""

    folder: Path
    base: Path
    scale: DemoScale
    price: Price | None = None
    trained: dict[str, TrainResult] = field(default_factory=dict)
    verification: Verification | None = None
    verdict: Verdict | None = None
    result: BenchmarkResult | None = None
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Says which step begins and how long it took."""
        say(f"step {STEPS.index(name) + 1} of {len(STEPS)}: {name}")
        started = perf_counter()
        yield
        self.seconds[name] = perf_counter() - started
        say(f"  {seconds_text(self.seconds[name])}")


def run_sentiment_demo(
    folder: Path, base: Path, *, scale: DemoScale = FULL_SCALE, seed: int = 0
) -> SentimentDemo:
    """Runs the demo in `folder`, or goes on with it: finished steps are not done again. Raises
    OtterError, also for a folder with a run of another base, seed or scale."""
    sentiment_lexicons.require_lexicons()
    folder.mkdir(parents=True, exist_ok=True)
    _check_settings(folder / "demo.json", {"seed": seed, **asdict(scale)})
    demo = SentimentDemo(folder, base, scale)
    grafted, data = folder / "grafted", folder / "data"
    data.mkdir(exist_ok=True)
    with demo.step("graft"):
        demo.price = _graft(base, grafted)
    with demo.step("write"):
        texts = _write_training_texts(grafted, data, scale, seed)
    with demo.step("train"):
        demo.trained["insertion"] = _train(grafted, texts, scale, seed)
    with demo.step("train ARGS's model"):
        demo.trained["lora"] = _train(grafted, texts, scale, seed, to=folder / "lora")
    with demo.step("verify"):
        demo.verification, demo.verdict = _verify(grafted, folder / "proof.json")
    with demo.step("compare"):
        demo.result = _compare(folder, scale, seed)
    return demo


def _check_settings(record: Path, settings: dict[str, Any]) -> None:
    """Writes down what the folder's run is, or compares: steps of two runs must not be mixed."""
    if not record.exists():
        write_json(record, settings)
        return
    before = read_own_json_object(record)
    differing = [name for name, value in settings.items() if before.get(name) != value]
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
    from otter_cli.checkpoint.folder import Checkpoint
    from otter_cli.graft.plan import plan_insertion
    from otter_cli.graft.price import price
    from otter_cli.graft.surgery import graft

    checkpoint = Checkpoint.open(base)
    plan = plan_insertion(checkpoint, SIGNALS, init="normal", **SIZES)
    if out.exists():
        _check_base(base, out)
    else:
        graft(checkpoint, out, plan, source=base.name)
    return price(plan, checkpoint)


def _write_training_texts(grafted: Path, folder: Path, scale: DemoScale, seed: int) -> Path:
    """The base continues the training prompts; VADER labels each continuation. The rows' file."""
    from otter_cli.model.load import load_tokenizer
    from otter_cli.model.otter import OtterForCausalLM
    from otter_cli.teaching.continuations import ContinuationSettings
    from otter_cli.teaching.rows import TeachingSettings, teach

    texts = _draw_prompts(training_prompts(), scale.prompts, seed)
    file = folder / "training-prompts.txt"
    write_text(file, "".join(f"{text}\n" for text in texts))
    drawing = ContinuationSettings(scale.samples, scale.tokens, seed=seed)
    teaching = TeachingSettings(LABELLER, file, chat=False, drawing=drawing)
    model = OtterForCausalLM.from_pretrained(grafted)
    return teach(grafted, model, load_tokenizer(grafted), teaching, ["score"]).path


def _draw_prompts(texts: list[str], count: int, seed: int) -> list[str]:
    """`count` of the texts, by seed, in their order."""
    chosen = random.Random(derive_seed("demo", seed)).sample(
        range(len(texts)), min(count, len(texts))
    )
    return [texts[i] for i in sorted(chosen)]


def _train(
    grafted: Path, texts: Path, scale: DemoScale, seed: int, to: Path | None = None
) -> TrainResult:
    """The insertion, or with `to` the separate reward model that ARGS needs (LoRA): on the same
    texts, for as many steps."""
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
            # A LoRA step keeps activations of the whole model: in four passes it fits 3 GB.
            "accumulate": 4 if to else 1,
            "max_length": 64,
            "learning_rate": 1e-3,
            "seed": seed,
            "signals": signals,
        }
    )
    return train(grafted, recipe, resume=True, baseline="lora" if to else None, to=to)


def _verify(grafted: Path, proof: Path) -> tuple[Verification, Verdict]:
    """In the dtype that the base is stored in, or float32 where that is none of the grid's;
    `otter verify` does the others."""
    from otter_cli.checkpoint.folder import Checkpoint
    from otter_cli.verification.agenda import VerificationRequest
    from otter_cli.verification.grid import Grid
    from otter_cli.verification.proof import proof_record
    from otter_cli.verification.report import decide
    from otter_cli.verification.run_verification import verify

    names = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
    grid = Grid(
        dtypes=(names.get(Checkpoint.open(grafted).dtype, "float32"),), attentions=("sdpa",)
    )
    report = verify(VerificationRequest(grafted, None, grid))
    verdict = decide(report)
    write_json(proof, proof_record(report, verdict))
    return report, verdict


def _compare(folder: Path, scale: DemoScale, seed: int) -> BenchmarkResult:
    """The test prompts, each method in turns on each of them; AFINN judges."""
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
