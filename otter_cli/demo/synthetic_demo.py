"""`otter demo --tiny`: graft, train, verify and three benchmarks on the tiny base, and the report.

Every step keeps what is in the folder already, so the same call resumes an interrupted run.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

from otter_cli.core.atomic import write_json
from otter_cli.core.console import say
from otter_cli.core.digests import sha256_file
from otter_cli.core.formatting import bytes_text, count_text, percent_text, seconds_text
from otter_cli.core.provenance import hardware, versions
from otter_cli.core.strict_files import read_own_json_object
from otter_cli.demo import BASE
from otter_cli.demo.world import write_world
from otter_cli.reports.benchmark import benchmark_sections
from otter_cli.reports.model_card import training_section
from otter_cli.reports.page import Report, ReportSection, ReportTable
from otter_cli.reports.report_files import write_report
from otter_cli.reports.verification import verification_sections

if TYPE_CHECKING:
    from otter_cli.benchmarks.results import BenchmarkResult
    from otter_cli.benchmarks.runner.run_benchmark import FinishedRun
    from otter_cli.decoding.sampling import Sampling
    from otter_cli.graft.price import Price
    from otter_cli.training.run import TrainResult
    from otter_cli.verification.report import Verdict
    from otter_cli.verification.report import VerificationReport as Verification


SIGNALS = ("reward", "toxicity", "future:3")
SIZES: dict[str, Any] = {"hidden": 32, "heads": 1, "ffn": 64}
DRAFT_PROMPTS, GUIDED_PROMPTS, DETOX_PROMPTS, DETOX_SAMPLES = 30, 30, 40, 8


@dataclass(frozen=True)
class SyntheticDemo:
    """What each step of the demo gave; `seconds` by step."""

    folder: Path
    price: Price
    trained: dict[str, TrainResult]
    verification: Verification
    verdict: Verdict
    results: dict[str, BenchmarkResult]
    auc: dict[str, float]
    seconds: dict[str, float]


def run_synthetic_demo(
    folder: Path, *, seed: int, recipe: Path, overrides: tuple[str, ...] = ()
) -> SyntheticDemo:
    """Runs, or resumes, the whole demo in `folder`: what is there already is not done again."""
    folder.mkdir(parents=True, exist_ok=True)
    clock = _StepTimer()
    data, grafted = folder / "data", folder / "grafted"
    with clock.step("data"):
        _make_if_missing(data, lambda: write_world(data, seed=seed))
    with clock.step("graft"):
        price = _graft(grafted)
    trained = {}
    for name, target in (("insertion", None), ("head", "head"), ("separate", "separate")):
        with clock.step(f"train {name}"):
            trained[name] = _train(grafted, recipe, data, overrides, folder, target)
    with clock.step("train the toxicity classifier"):
        auc = _train_classifier(folder / "detoxify", seed)
    with clock.step("verify"):
        found, verdict = _verify(grafted, folder / "proof.json")
    results = {}
    for name in ("preference", "detox", "speedup"):
        with clock.step(f"bench {name}"):
            results[name] = _bench(name, folder, seed).result
    return SyntheticDemo(folder, price, trained, found, verdict, results, auc, clock.seconds)


class _StepTimer:
    """Says what is being done, and how long it took."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._name, self._started = "", 0.0

    def step(self, name: str) -> _StepTimer:
        self._name = name
        say(f"-- {name}")
        return self

    def __enter__(self) -> None:
        self._started = perf_counter()

    def __exit__(self, *_: object) -> None:
        self.seconds[self._name] = perf_counter() - self._started
        say(f"   {seconds_text(self.seconds[self._name])}")


def _make_if_missing(path: Path, make: Callable[[], object]) -> None:
    if not path.exists():
        make()


def _graft(out: Path) -> Price:
    from otter_cli.checkpoint.folder import Checkpoint
    from otter_cli.graft.plan import plan_insertion
    from otter_cli.graft.price import price
    from otter_cli.graft.surgery import graft

    base = Checkpoint.open(BASE)
    plan = plan_insertion(base, SIGNALS, **SIZES)
    _make_if_missing(out, lambda: graft(base, out, plan, source="otter demo base", mode="copy"))
    return price(plan, base)


def _train(
    grafted: Path,
    recipe: Path,
    data: Path,
    overrides: tuple[str, ...],
    folder: Path,
    baseline: str | None,
) -> TrainResult:
    from otter_cli.training.recipe import load_recipe
    from otter_cli.training.run import train

    loaded = load_recipe(recipe, overrides, data=data)
    if baseline == "separate":
        # A separate reward model has one head: the reward's.
        loaded = loaded.only(["reward"])
    to = folder / baseline if baseline else None
    return train(grafted, loaded, resume=True, baseline=baseline, to=to)  # type: ignore[arg-type]


def _train_classifier(out: Path, seed: int) -> dict[str, float]:
    from otter_cli.demo.toxicity_classifier import train_toxicity_classifier

    if out.exists():
        recorded: dict[str, float] = read_own_json_object(out / "PROVENANCE.json")["auc"]
        return recorded
    return train_toxicity_classifier(out, seed=seed)


def _verify(grafted: Path, proof: Path) -> tuple[Verification, Verdict]:
    from otter_cli.verification.agenda import VerificationRequest
    from otter_cli.verification.proof import proof_record
    from otter_cli.verification.report import decide
    from otter_cli.verification.run_verification import verify

    found = verify(VerificationRequest(grafted, BASE))
    verdict = decide(found)
    write_json(proof, proof_record(found, verdict))
    return found, verdict


def _bench(name: str, folder: Path, seed: int) -> FinishedRun:
    from otter_cli.benchmarks.options import Guidance
    from otter_cli.benchmarks.runner.run_benchmark import run_benchmark
    from otter_cli.benchmarks.tasks import assemble
    from otter_cli.decoding.sampling import Sampling
    from otter_cli.demo import world
    from otter_cli.demo.world import gold_score
    from otter_cli.scorers.scorer import RuleScorer

    out = folder / name
    if name == "preference":
        grafts, setting = _prepare(folder, "reward", GUIDED_PROMPTS, Sampling(64), seed)
        rule = RuleScorer("gold rule", gold_score, digest=sha256_file(Path(world.__file__)))
        guidance = Guidance(signal="reward", strength=0.5)
        benchmark: Any = assemble.assemble_preference(
            grafts, setting, guidance, reward_model=folder / "separate", gold=rule
        )
    elif name == "detox":
        drawn = Sampling(24, temperature=1.0, top_k=10)
        grafts, setting = _prepare(folder, "toxicity", DETOX_PROMPTS, drawn, seed, DETOX_SAMPLES)
        guidance = Guidance(signal="toxicity", strength=-8.0)
        benchmark = assemble.assemble_detox(grafts, setting, guidance, detoxify=folder / "detoxify")
    else:
        grafts, setting = _prepare(folder, "future", DRAFT_PROMPTS, Sampling(64), seed)
        benchmark = assemble.assemble_speedup(grafts, setting, signal="future")
    return run_benchmark(benchmark, out)


def _prepare(
    folder: Path, signal: str, limit: int, sampling: Sampling, seed: int, repeats: int = 1
) -> Any:
    from otter_cli.benchmarks.options import BenchmarkOptions
    from otter_cli.benchmarks.tasks.assemble import load_setting

    options = BenchmarkOptions(
        folder=folder / "grafted",
        task_head=folder / "head",
        signal=signal,
        prompts=folder / "data" / "prompts.jsonl",
        limit=limit,
        samples=repeats,
        batch=repeats,
        seed=seed,
    )
    return load_setting(options, sampling)


_LEAD = (
    "A tiny Llama that ships with otter, trained on text of a small synthetic world: polite and "
    "rude exchanges that a seeded grammar writes. Every number here is about that world."
)
_TRAINING_TEXT = (
    "Equal data and steps. The insertion reads the frozen base and trains beside it; task head "
    "only is the same heads on the frozen final state; the separate reward model is a full copy "
    "of the base, all of whose weights are trained, for the reward alone."
)


def synthetic_report(demo: SyntheticDemo) -> Report:
    """Everything that the demo found, as one report."""
    labels = {"insertion": "insertion", "head": "task head only", "separate": "separate model"}
    runs = {labels[name]: run for name, run in demo.trained.items()}
    sections = [
        _price_section(demo),
        training_section(runs, _TRAINING_TEXT),
        _verdict_section(demo),
    ]
    sections += verification_sections(demo.verification)
    for result in demo.results.values():
        sections += benchmark_sections(result)
    return Report("otter demo (synthetic)", _LEAD, sections, _report_facts(demo))


def write_synthetic_report(demo: SyntheticDemo) -> Path:
    """Writes report.html and report.md into the demo's folder; the HTML's path."""
    return write_report(synthetic_report(demo), demo.folder)


def _price_section(demo: SyntheticDemo) -> ReportSection:
    price = demo.price
    rows = [
        [part, count_text(count), percent_text(count / price.base_parameters)]
        for part, count in price.by_part.items()
    ]
    rows.append(["all", count_text(price.inserted_parameters), percent_text(price.ratio)])
    growth = price.inserted_cache_bytes_per_token
    share = growth / (price.base_cache_bytes_per_token or growth or 1)
    text = (
        f"The base has {count_text(price.base_parameters)} parameters. Inserted, stored apart: "
        f"{bytes_text(price.inserted_bytes)}; the KV cache grows by {bytes_text(growth)} a token, "
        f"{percent_text(share)} of the base's."
    )
    return ReportSection(
        "Graft", [text], [ReportTable(["inserted", "parameters", "of the base"], rows)]
    )


def _verdict_section(demo: SyntheticDemo) -> ReportSection:
    return ReportSection(f"Verify: {demo.verdict.name}", [demo.verdict.sentence])


def _report_facts(demo: SyntheticDemo) -> list[tuple[str, str]]:
    machine = hardware()
    packages = [f"{name} {version}" for name, version in versions().items()]
    auc = ", ".join(f"{label} {value:.3f}" for label, value in demo.auc.items())
    return [
        ("toxicity classifier", f"in Detoxify's format, trained here; held-out AUC: {auc}"),
        *((f"time of {name}", seconds_text(spent)) for name, spent in demo.seconds.items()),
        ("machine", f"{machine['cpu']}, {machine['cores']} cores"),
        ("versions", ", ".join(packages)),
    ]
