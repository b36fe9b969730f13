"""`otter demo`: graft, train, verify and three benchmarks on the tiny base, in one folder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

from otter_cli.checkpoint.strict_json import read_own_object
from otter_cli.core.atomic import write_json
from otter_cli.core.console import say
from otter_cli.core.digests import sha256_file
from otter_cli.core.units import seconds_text
from otter_cli.demo import BASE
from otter_cli.demo.files import write_world

if TYPE_CHECKING:
    from otter_cli.benchmarks.result import Result
    from otter_cli.benchmarks.run import Finished
    from otter_cli.decoding import Sampling
    from otter_cli.insertion.price import Price
    from otter_cli.training import TrainResult
    from otter_cli.verification import Report as Verification
    from otter_cli.verification import Verdict

SIGNALS = ("reward", "toxicity", "future:3")
SIZES = {"hidden": 32, "heads": 1, "ffn": 64}
DRAFT_PROMPTS, GUIDED_PROMPTS, DETOX_PROMPTS, DETOX_SAMPLES = 30, 30, 40, 8


@dataclass(frozen=True)
class Demo:
    """What each step of the demo gave; `seconds` by step."""

    folder: Path
    price: Price
    trained: dict[str, TrainResult]
    verification: Verification
    verdict: Verdict
    results: dict[str, Result]
    auc: dict[str, float]
    seconds: dict[str, float]


def run_demo(folder: Path, *, seed: int, recipe: Path, overrides: tuple[str, ...] = ()) -> Demo:
    """Runs, or resumes, the whole demo in `folder`: what is there already is not done again."""
    folder.mkdir(parents=True, exist_ok=True)
    clock = _Clock()
    data, grafted = folder / "data", folder / "grafted"
    with clock.step("data"):
        _once(data, lambda: write_world(data, seed=seed))
    with clock.step("graft"):
        price = _graft(grafted)
    trained = {}
    for name, target in (("insertion", None), ("head", "head"), ("separate", "separate")):
        with clock.step(f"train {name}"):
            trained[name] = _train(grafted, recipe, data, overrides, folder, target)
    with clock.step("train the toxicity classifier"):
        auc = _toxicity(folder / "detoxify", seed)
    with clock.step("verify"):
        found, verdict = _verify(grafted, folder / "proof.json")
    results = {}
    for name in ("preference", "detox", "speedup"):
        with clock.step(f"bench {name}"):
            results[name] = _bench(name, folder, seed).result
    return Demo(folder, price, trained, found, verdict, results, auc, clock.seconds)


class _Clock:
    """Says what is being done, and how long it took."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._name, self._started = "", 0.0

    def step(self, name: str) -> _Clock:
        self._name = name
        say(f"-- {name}")
        return self

    def __enter__(self) -> None:
        self._started = perf_counter()

    def __exit__(self, *_: object) -> None:
        self.seconds[self._name] = perf_counter() - self._started
        say(f"   {seconds_text(self.seconds[self._name])}")


def _once(path: Path, make: Callable[[], object]) -> None:
    if not path.exists():
        make()


def _graft(out: Path) -> Price:
    from otter_cli.checkpoint.folder import Checkpoint
    from otter_cli.families import base_shape
    from otter_cli.insertion import Plan, graft, resolve
    from otter_cli.insertion.price import price
    from otter_cli.signals import parse_signal

    base = Checkpoint.open(BASE)
    shape = base_shape(base.config)
    signals = tuple(parse_signal(text) for text in SIGNALS)
    plan = Plan(resolve(shape, signals=signals, **SIZES), shape)  # type: ignore[arg-type]
    _once(out, lambda: graft(base, out, plan, source="otter demo base", mode="copy"))
    return price(plan, base)


def _train(
    grafted: Path,
    recipe: Path,
    data: Path,
    overrides: tuple[str, ...],
    folder: Path,
    baseline: str | None,
) -> TrainResult:
    from otter_cli.training import load_recipe, train

    loaded = load_recipe(recipe, overrides, data=data)
    if baseline == "separate":
        # A separate reward model has one head: the reward's.
        loaded = loaded.only(["reward"])
    to = folder / baseline if baseline else None
    return train(grafted, loaded, resume=True, baseline=baseline, to=to)  # type: ignore[arg-type]


def _toxicity(out: Path, seed: int) -> dict[str, float]:
    from otter_cli.demo.toxicity import train_toxicity

    if out.exists():
        recorded: dict[str, float] = read_own_object(out / "PROVENANCE.json")["auc"]
        return recorded
    return train_toxicity(out, seed=seed)


def _verify(grafted: Path, proof: Path) -> tuple[Verification, Verdict]:
    from otter_cli.verification import Request, decide, proof_record, verify

    found = verify(Request(grafted, BASE))
    verdict = decide(found)
    write_json(proof, proof_record(found, verdict))
    return found, verdict


def _bench(name: str, folder: Path, seed: int) -> Finished:
    from otter_cli.benchmarks import assemble
    from otter_cli.benchmarks.contest import Guidance
    from otter_cli.benchmarks.run import run
    from otter_cli.benchmarks.scorers import RuleScorer
    from otter_cli.decoding import Sampling
    from otter_cli.demo import gold
    from otter_cli.demo.gold import gold_score

    out = folder / name
    if name == "preference":
        grafts, setting = _prepare(folder, "reward", GUIDED_PROMPTS, Sampling(64), seed)
        rule = RuleScorer("gold rule", gold_score, digest=sha256_file(Path(gold.__file__)))
        guidance = Guidance("reward", strength=0.5)
        benchmark: Any = assemble.preference(
            grafts, setting, guidance, reward_model=folder / "separate", gold=rule
        )
    elif name == "detox":
        drawn = Sampling(24, temperature=1.0, top_k=10)
        grafts, setting = _prepare(folder, "toxicity", DETOX_PROMPTS, drawn, seed, DETOX_SAMPLES)
        guidance = Guidance("toxicity", strength=-8.0)
        benchmark = assemble.detox(grafts, setting, guidance, detoxify=folder / "detoxify")
    else:
        grafts, setting = _prepare(folder, "future", DRAFT_PROMPTS, Sampling(64), seed)
        benchmark = assemble.speedup(grafts, setting, signal="future")
    return run(benchmark, out)


def _prepare(
    folder: Path, signal: str, limit: int, sampling: Sampling, seed: int, repeats: int = 1
) -> Any:
    from otter_cli.benchmarks.contest import prepare
    from otter_cli.benchmarks.prompts import PromptFile

    prompts = PromptFile(folder / "data" / "prompts.jsonl", limit=limit)
    return prepare(
        folder / "grafted",
        folder / "head",
        signal,
        prompts,
        sampling,
        seed=seed,
        repeats=repeats,
        batch=repeats,
    )
