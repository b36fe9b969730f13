"""The steps of the demo, each resumable: write, train, verify, compare."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

from otter_cli.checkpoint.strict_json import read_own_object
from otter_cli.core.atomic import write_json, write_text
from otter_cli.core.console import say
from otter_cli.core.errors import OtterError
from otter_cli.core.seeds import derive_seed
from otter_cli.core.units import seconds_text
from otter_cli.demo.sentiment import lexicons, prompts

if TYPE_CHECKING:
    from otter_cli.benchmarks.result import Result
    from otter_cli.insertion.price import Price
    from otter_cli.training import TrainResult
    from otter_cli.verification import Report as Verification
    from otter_cli.verification import Verdict

LABELLER = "python:otter_cli.demo.sentiment.lexicons:vader"
VALUE, NEXT = "sentiment", "next"
SIGNALS = (f"{VALUE}=value", f"{NEXT}=action-reward")
INSERTED = {"hidden": 16, "heads": 1, "ffn": 40}
METHODS = {"plain": "plain", "one-pass": "otter, one pass", "args": "ARGS, a second model"}


@dataclass(frozen=True)
class Scale:
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


WHOLE = Scale()
QUICK = Scale(prompts=40, samples=6, steps=50, batch=16, test_prompts=12)
STEPS = ("graft", "write", "train", "train ARGS's model", "verify", "compare")


@dataclass
class SentimentDemo:
    """What each step gave; `seconds` by step."""

    folder: Path
    base: Path
    scale: Scale
    price: Price | None = None
    trained: dict[str, TrainResult] = field(default_factory=dict)
    verification: Verification | None = None
    verdict: Verdict | None = None
    result: Result | None = None
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Says which step begins and how long it took."""
        say(f"step {STEPS.index(name) + 1} of {len(STEPS)}: {name}")
        started = perf_counter()
        yield
        self.seconds[name] = perf_counter() - started
        say(f"  {seconds_text(self.seconds[name])}")


def run_sentiment(
    folder: Path, base: Path, *, scale: Scale = WHOLE, seed: int = 0
) -> SentimentDemo:
    """Runs the demo in `folder`, or goes on with it: finished steps are not done again. Raises
    OtterError, also for a folder with a run of another base, seed or scale."""
    lexicons.require_lexicons()
    folder.mkdir(parents=True, exist_ok=True)
    _check_settings(folder / "demo.json", {"seed": seed, **asdict(scale)})
    demo = SentimentDemo(folder, base, scale)
    grafted, data = folder / "grafted", folder / "data"
    data.mkdir(exist_ok=True)
    with demo.step("graft"):
        demo.price = _graft(base, grafted)
    with demo.step("write"):
        texts = _write(grafted, data, scale, seed)
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
    before = read_own_object(record)
    differing = [name for name, value in settings.items() if before.get(name) != value]
    if differing:
        raise OtterError(
            f"{record.parent} holds a run with other settings: {', '.join(differing)}",
            hint="give the same options as before, or another folder",
        )


def _check_base(base: Path, grafted: Path) -> None:
    from otter_cli.insertion import Manifest
    from otter_cli.insertion.opened import check_base_files

    try:
        check_base_files(grafted, Manifest.read(grafted), base=base)
    except OtterError as error:
        raise OtterError(
            f"{grafted.parent} holds a run with another base: {error.what}",
            hint="give the same --model as before, or another folder",
        ) from error


def _graft(base: Path, out: Path) -> Price:
    from otter_cli.checkpoint.folder import Checkpoint
    from otter_cli.families import base_shape
    from otter_cli.insertion import Plan, graft, resolve
    from otter_cli.insertion.price import price
    from otter_cli.signals import parse_signal

    checkpoint = Checkpoint.open(base)
    shape = base_shape(checkpoint.config)
    signals = tuple(parse_signal(text) for text in SIGNALS)
    plan = Plan(resolve(shape, signals=signals, init="normal", **INSERTED), shape)  # type: ignore[arg-type]
    if out.exists():
        _check_base(base, out)
    else:
        graft(checkpoint, out, plan, source=base.name)
    return price(plan, checkpoint)


def _write(grafted: Path, folder: Path, scale: Scale, seed: int) -> Path:
    """The base continues the training prompts; VADER labels each continuation. The rows' file."""
    from otter_cli.model import OtterForCausalLM
    from otter_cli.model.pretrained import load_tokenizer
    from otter_cli.teaching import Teaching, teach
    from otter_cli.teaching.writing import Drawing

    texts = _drawn(prompts.training_prompts(), scale.prompts, seed)
    file = folder / "training-prompts.txt"
    write_text(file, "".join(f"{text}\n" for text in texts))
    drawing = Drawing(scale.samples, scale.tokens, seed=seed)
    teaching = Teaching(LABELLER, file, chat=False, drawing=drawing)
    model = OtterForCausalLM.from_pretrained(grafted)
    return teach(grafted, model, load_tokenizer(grafted), teaching, ["score"]).path


def _drawn(texts: list[str], count: int, seed: int) -> list[str]:
    """`count` of the texts, by seed, in their order."""
    chosen = random.Random(derive_seed("demo", seed)).sample(
        range(len(texts)), min(count, len(texts))
    )
    return [texts[i] for i in sorted(chosen)]


def _train(
    grafted: Path, texts: Path, scale: Scale, seed: int, to: Path | None = None
) -> TrainResult:
    """The insertion, or with `to` the separate reward model that ARGS needs (LoRA): on the same
    texts, for as many steps."""
    from otter_cli.training import Recipe, train

    source = {"path": str(texts.resolve()), "text": "text", "labels": ["score"]}
    common = {"eos": False, "held_out": 0.1, "train": source}
    signals: dict[str, Any] = {VALUE: {"objective": "pointwise", **common}}
    if to is None:
        signals[NEXT] = {"objective": "action-values", **common}
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
    from otter_cli.verification import Grid, Request, decide, proof_record, verify

    names = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
    grid = Grid(
        dtypes=(names.get(Checkpoint.open(grafted).dtype, "float32"),), attentions=("sdpa",)
    )
    report = verify(Request(grafted, None, grid))
    verdict = decide(report)
    write_json(proof, proof_record(report, verdict))
    return report, verdict


def _compare(folder: Path, scale: Scale, seed: int) -> Result:
    """The test prompts, each method in turns on each of them; AFINN judges."""
    from otter_cli.benchmarks.benchmark import Setting
    from otter_cli.benchmarks.judges import guiding
    from otter_cli.benchmarks.method_specs import MethodSpec, build
    from otter_cli.benchmarks.models import Models, load_graft
    from otter_cli.benchmarks.preference import GOLD, Preference
    from otter_cli.benchmarks.prompts import PromptFile, load_prompts
    from otter_cli.benchmarks.run import run
    from otter_cli.benchmarks.scorers import RuleScorer
    from otter_cli.decoding import Sampling

    file = folder / "data" / "prompts.jsonl"
    texts = _drawn(prompts.held_out_prompts(), scale.test_prompts, seed)
    write_text(file, "".join(f"{json.dumps({'prompt': text})}\n" for text in texts))
    graft = load_graft(folder / "grafted", NEXT, device="cpu")
    positions = graft.model.shape.max_positions
    loaded, record = load_prompts(
        PromptFile(file), graft.tokenizer, positions=positions, new_tokens=scale.new_tokens
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
    methods = build(specs, Models(graft, NEXT))
    judge = RuleScorer("AFINN > 0", lexicons.afinn_positive, digest=lexicons.afinn_digest())
    setting = Setting(loaded, record, sampling, seed=seed)
    scorers = {GOLD: judge, **guiding(methods)}
    return run(Preference(setting, graft, methods, scorers), folder / "compare").result
