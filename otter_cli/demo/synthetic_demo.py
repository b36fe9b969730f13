"""`otter demo --tiny`: graft, train, verify and three benchmarks on the tiny base, and the report.

Every step keeps what is already in the folder, so the same call resumes an interrupted run.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from otter_cli.core.formatting import bytes_text, count_text, percent_text
from otter_cli.core.strict_files import read_own_json_object
from otter_cli.demo import BASE
from otter_cli.demo.steps import StepTimer, graft_base, price_table, run_facts, verify_graft
from otter_cli.demo.world import write_world
from otter_cli.reports.benchmark import benchmark_sections
from otter_cli.reports.model_card import training_section
from otter_cli.reports.page import Report, ReportSection
from otter_cli.reports.verification import verification_sections

if TYPE_CHECKING:
    from otter_cli.benchmarks.results import BenchmarkResult
    from otter_cli.benchmarks.runner.run_benchmark import FinishedRun
    from otter_cli.decoding.sampling import Sampling
    from otter_cli.graft.price import Price
    from otter_cli.training.run import TrainResult
    from otter_cli.verification.report import Verdict, VerificationReport


SIGNALS = ("reward", "toxicity", "future:3")
SIZES: dict[str, Any] = {"hidden": 32, "heads": 1, "ffn": 64}
DRAFT_PROMPTS, GUIDED_PROMPTS, DETOX_PROMPTS, DETOX_SAMPLES = 30, 30, 40, 8
# Each trained model, with the baseline that it is; the insertion itself is none.
BASELINES = {"insertion": None, "head": "head", "separate": "separate"}
BENCHMARKS = ("preference", "detox", "speedup")
STEPS = (
    "data",
    "graft",
    *(f"train {name}" for name in BASELINES),
    "train the toxicity classifier",
    "verify",
    *(f"bench {name}" for name in BENCHMARKS),
)


@dataclass(frozen=True)
class SyntheticDemo:
    """The result of each step, and its duration in seconds. `auc` is the toxicity classifier's on
    held-out texts, by label."""

    folder: Path
    price: Price
    trained: dict[str, TrainResult]
    verification: VerificationReport
    verdict: Verdict
    results: dict[str, BenchmarkResult]
    auc: dict[str, float]
    seconds: dict[str, float]

    def record(self) -> dict[str, Any]:
        """The results as JSON has them."""
        counts = {
            "cases": len(self.verification.results),
            "equal": self.verification.equal,
            "control": self.verification.control,
            "poison": self.verification.poison,
        }
        return {
            "graft": self.price.record(),
            "train": {name: vars(run) for name, run in self.trained.items()},
            "verify": {"verdict": self.verdict.name, **counts},
            "bench": {name: r.model_dump(mode="json") for name, r in self.results.items()},
            "seconds": self.seconds,
            "synthetic": True,
        }


def run_synthetic_demo(
    folder: Path, *, seed: int, recipe: Path, overrides: tuple[str, ...] = ()
) -> SyntheticDemo:
    """Runs the whole demo in `folder`, or resumes it: finished steps are kept."""
    folder.mkdir(parents=True, exist_ok=True)
    timer = StepTimer(STEPS)
    data, grafted = folder / "data", folder / "grafted"
    with timer.step("data"):
        if not data.exists():
            write_world(data, seed=seed)
    with timer.step("graft"):
        source = "otter demo base"
        price = graft_base(BASE, grafted, source=source, signals=SIGNALS, mode="copy", **SIZES)
    trained = {}
    for name, baseline in BASELINES.items():
        with timer.step(f"train {name}"):
            trained[name] = _train(grafted, recipe, data, overrides, folder, baseline)
    with timer.step("train the toxicity classifier"):
        auc = _train_classifier(folder / "detoxify", seed)
    with timer.step("verify"):
        report, verdict = verify_graft(grafted, folder / "proof.json", base=BASE)
    results = {}
    for name in BENCHMARKS:
        with timer.step(f"bench {name}"):
            results[name] = _bench(name, folder, seed).result
    return SyntheticDemo(folder, price, trained, report, verdict, results, auc, timer.seconds)


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


def _bench(name: str, folder: Path, seed: int) -> FinishedRun:
    from otter_cli.benchmarks.options import Guidance
    from otter_cli.benchmarks.runner.run_benchmark import run_benchmark
    from otter_cli.benchmarks.tasks import assemble
    from otter_cli.decoding.sampling import Sampling
    from otter_cli.demo.world import gold_rule_digest, gold_score
    from otter_cli.scorers.scorer import RuleScorer

    out = folder / name
    if name == "preference":
        grafts, setting = _prepare(folder, "reward", GUIDED_PROMPTS, Sampling(64), seed)
        rule = RuleScorer("gold rule", gold_score, digest=gold_rule_digest())
        guidance = Guidance(signal="reward", strength=0.5)
        benchmark: Any = assemble.assemble_preference(
            grafts, setting, guidance, reward_model=folder / "separate", gold=rule
        )
    elif name == "detox":
        sampling = Sampling(24, temperature=1.0, top_k=10)
        grafts, setting = _prepare(folder, "toxicity", DETOX_PROMPTS, sampling, seed, DETOX_SAMPLES)
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
    "The base is a tiny Llama that ships with otter. It was trained on text of a small synthetic "
    "world: polite and rude exchanges from a seeded grammar. Every number here is about that world."
)
_TRAINING_TEXT = (
    "All three were trained on the same data for the same number of steps. The insertion reads the "
    'frozen base. "Task head only" trains the same heads on the base\'s frozen final state. The '
    "separate model is a full copy of the base with all weights trained, for the reward only."
)


def synthetic_report(demo: SyntheticDemo) -> Report:
    """All results of the demo as one report."""
    labels = {"insertion": "insertion", "head": "task head only", "separate": "separate model"}
    runs = {labels[name]: run for name, run in demo.trained.items()}
    sections = [
        _price_section(demo),
        training_section(runs, _TRAINING_TEXT),
        ReportSection(f"Verify: {demo.verdict.name}", [demo.verdict.sentence]),
        *verification_sections(demo.verification),
    ]
    for result in demo.results.values():
        sections += benchmark_sections(result)
    return Report("otter demo (synthetic)", _LEAD, sections, _report_facts(demo))


def _price_section(demo: SyntheticDemo) -> ReportSection:
    price = demo.price
    growth = price.inserted_cache_bytes_per_token
    share = growth / (price.base_cache_bytes_per_token or growth or 1)
    text = (
        f"The base has {count_text(price.base_parameters)} parameters. The inserted tensors are "
        f"stored apart and take {bytes_text(price.inserted_bytes)}. The KV cache grows by "
        f"{bytes_text(growth)} per token, {percent_text(share)} of the base's."
    )
    return ReportSection("Graft", [text], [price_table(price)])


def _report_facts(demo: SyntheticDemo) -> list[tuple[str, str]]:
    auc = ", ".join(f"{label} {value:.3f}" for label, value in demo.auc.items())
    classifier = f"in Detoxify's format, trained here; held-out AUC: {auc}"
    return [("toxicity classifier", classifier), *run_facts(demo.seconds)]
