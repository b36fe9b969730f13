"""Results as reports: every figure with its interval and n, bad news included."""

import io
from html import unescape
from pathlib import Path
from pkgutil import resolve_name

import pytest
from rich.console import Console

from otter_cli.benchmarks.metrics.estimates import METRICS, Estimate, metric_info
from otter_cli.benchmarks.prompts import PromptsRecord
from otter_cli.benchmarks.records import MethodRecord, RunSettings
from otter_cli.benchmarks.results import (
    BenchmarkResult,
    Divergence,
    MethodMemory,
    MethodResult,
    ResultFile,
)
from otter_cli.core.errors import OtterError
from otter_cli.core.provenance import provenance
from otter_cli.reports.benchmark import benchmark_plots, benchmark_report, benchmark_sections
from otter_cli.reports.html import html_page
from otter_cli.reports.markdown import markdown_page
from otter_cli.reports.page import difference_cell, figure_cell, name_with_unit, number_text
from otter_cli.reports.report_files import _COMMON_KIND, _KINDS
from otter_cli.reports.terminal import terminal_page
from otter_cli.scorers.load import ModelRecord

OF = {
    "preference": ["gold_reward", "guiding_reward", "reward_by_task_head", "diversity",
                   "log_probability", "perplexity", "time_per_token", "time_ratio", "memory"],
    "detox": ["expected_maximum_toxicity", "toxicity_probability", "perplexity", "distinct_2",
              "time_per_token", "memory"],
    "speedup": ["speed_up", "tokens_per_step", "drafted_per_step", "acceptance_1", "acceptance_2",
                "identical", "tokens_per_second", "memory"],
}  # fmt: skip


def figure(mean: float) -> Estimate:
    return Estimate(mean=mean, low=mean * 0.9, high=mean * 1.1, n=200)


def made(benchmark: str) -> BenchmarkResult:
    names = ("plain", "insertion", "task-head", "args")
    methods = {}
    for i, name in enumerate(names):
        metrics = {metric: figure(0.4 + 0.1 * i) for metric in OF[benchmark]}
        if name == "plain":
            metrics = {k: v for k, v in metrics.items() if not k.startswith("acceptance")}
        methods[name] = MethodResult(
            label=name.replace("-", " "),
            metrics=metrics,
            against_plain={} if name == "plain" else dict(metrics),
            memory=MethodMemory(weights=27_800_000, caches=1_000_000 * (i + 1)),
            divergences=[Divergence(prompt="17", position=4, gap=2e-6)] * (20 if i == 1 else 0),
        )
    models = [ModelRecord(name="grafted", kind="otter", weights="ab" * 32)]
    settings = RunSettings(
        benchmark=benchmark,
        prompts=PromptsRecord(file="prompts.jsonl", digest="cd" * 32, count=200, truncated=3),
        methods={name: MethodRecord(label=name, models=models) for name in names},
        sampling={"max_new_tokens": 20, "temperature": 1.0},
        samples_per_prompt=25,
        batch=25,
        seed=7,
    )
    return BenchmarkResult(
        benchmark=benchmark,  # type: ignore[arg-type]
        key=settings.key,
        settings=settings,
        methods=methods,
        findings=["task head: speed-up 0.93 (0.9 to 0.96). The speed-up is below 1."],
        sessions=[{**provenance(["otter"]), "threads": 2}],
        process_memory=10**9,
    )


@pytest.fixture(params=["preference", "detox", "speedup"])
def result(request: pytest.FixtureRequest) -> BenchmarkResult:
    return made(request.param)


def test_every_figure_stands_in_every_form(result: BenchmarkResult) -> None:
    report = benchmark_report(result)
    out = io.StringIO()
    Console(file=out, width=100, color_system=None).print(terminal_page(report))
    for page in (out.getvalue(), markdown_page(report), unescape(html_page(report))):
        assert "n = 200 prompts" in page
        assert "The speed-up is below 1." in page.replace("\n", " ")
        for name in OF[result.benchmark]:
            assert metric_info(name).label in page.replace("\n", " ")
    assert max(map(len, out.getvalue().splitlines())) <= 100


def test_the_page_says_what_made_the_numbers(result: BenchmarkResult) -> None:
    page = html_page(benchmark_report(result))
    for part in (result.key[:16], "cdcdcdcdcdcd", "abababababab", "seed 7", "3 prompts, to their"):
        assert part in page


def test_times_of_prompts_that_shared_batches_are_told_as_such() -> None:
    alone = made("detox")
    settings = alone.settings.model_copy(update={"together": 16})
    shared = alone.model_copy(update={"settings": settings})
    note = "times depend on the other prompts"
    assert note in markdown_page(benchmark_report(shared))
    assert note not in markdown_page(benchmark_report(alone))


def test_sections_on_a_page_of_many_say_whose_they_are(result: BenchmarkResult) -> None:
    alone = {section.title for section in benchmark_sections(result, alone=True)}
    title, *others = [section.title for section in benchmark_sections(result)]
    assert {"Figures", "Memory"} <= alone
    assert all(other.startswith(f"{title}. ") for other in others)


def test_plots_take_their_numbers_from_the_result(result: BenchmarkResult) -> None:
    plots = benchmark_plots(result)
    assert len(plots) == (4 if result.benchmark == "preference" else 3)
    for plot in plots:
        labels = [row[0] for row in plot.data()[1:]]
        assert set(labels) <= {"plain", "insertion", "task head", "args"}


def test_many_divergences_are_counted_and_not_all_listed() -> None:
    page = markdown_page(benchmark_report(made("speedup")))
    assert page.count("| insertion | 17 | 4 |") == 12
    assert "8 more are in result.json" in page


def test_the_schema_refuses_what_it_does_not_know(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    path.write_text(made("detox").model_dump_json())
    assert BenchmarkResult.read(tmp_path) == made("detox").model_copy(
        update={"sessions": BenchmarkResult.read(tmp_path).sessions}
    )
    path.write_text(path.read_text().replace('"n":200', '"n":200,"median":1'))
    with pytest.raises(OtterError, match="median"):
        BenchmarkResult.read(tmp_path)
    path.unlink()
    with pytest.raises(OtterError, match=r"holds no result.json"):
        BenchmarkResult.read(tmp_path)


def test_figures_that_are_not_finite_have_no_place_in_a_result() -> None:
    with pytest.raises(ValueError, match="finite"):
        Estimate(mean=float("nan"), low=0, high=1, n=3)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.03124, "0.0312"),
        (0.3, "0.300"),
        (25.51, "25.5"),
        (12345.6, "12,346"),
        (100.0, "100"),
        (-2.5, "-2.50"),
        (0, "0"),
    ],
)
def test_numbers_have_three_digits(value: float, text: str) -> None:
    assert number_text(value) == text


def test_units_are_said_once_and_values_are_scaled() -> None:
    memory, identical = METRICS["memory"], METRICS["identical"]
    assert name_with_unit(memory) == "memory, counted, MB"
    assert figure_cell(Estimate(mean=27.8e6, low=27e6, high=28e6, n=2), memory).text == "27.8"
    assert (
        figure_cell(Estimate(mean=0.998, low=0.9, high=1, n=2), identical).detail == "90.0 to 100"
    )


def test_a_difference_is_coloured_only_when_it_is_shown() -> None:
    reward, time = METRICS["gold_reward"], METRICS["time_per_token"]
    up = Estimate(mean=0.2, low=0.1, high=0.3, n=9)
    unclear = Estimate(mean=0.2, low=-0.1, high=0.3, n=9)
    assert difference_cell(up, reward).tone == "good"
    assert difference_cell(up, time).tone == "bad"
    assert difference_cell(unclear, reward).tone == "plain"
    assert difference_cell(up, METRICS["tokens"]).tone == "plain"
    assert difference_cell(up, reward).text == "+0.200"
    assert figure_cell(up, reward).detail == "0.100 to 0.300"


def test_an_unknown_metric_is_named() -> None:
    with pytest.raises(OtterError, match="happiness"):
        metric_info("happiness")
    assert metric_info("acceptance_3").label == "accepted at position 3"
    assert metric_info("reward_by_task_head").label == "reward by the task head"


def test_every_kind_of_result_has_a_report() -> None:
    for result_name, report_name in [*_KINDS.values(), _COMMON_KIND]:
        assert issubclass(resolve_name(f"otter_cli.{result_name}"), ResultFile)
        assert callable(resolve_name(f"otter_cli.reports.{report_name}"))
