"""A benchmark's result as a report: findings, figures, plots, comparisons, memory."""

import re
from collections.abc import Callable, Iterator
from typing import Any

from otter_cli.benchmarks.metrics.estimates import Estimate, Metric, metric_info
from otter_cli.benchmarks.records import STRENGTH_MARK
from otter_cli.benchmarks.results import BenchmarkResult, MethodMemory, MethodResult
from otter_cli.core.formatting import bytes_text
from otter_cli.reports.page import (
    Cell,
    IntervalPlot,
    LinePlot,
    Plot,
    PlotSeries,
    Report,
    ReportSection,
    ReportTable,
    ScatterPlot,
    difference_cell,
    figure_cell,
    name_with_unit,
    plot_point,
)

_ACCEPTANCE = re.compile(r"acceptance_(\d+)")


def benchmark_plots(result: BenchmarkResult) -> list[Plot]:
    """The headline with its intervals, and what it costs."""
    if result.benchmark == "preference":
        return [
            _interval_plot(result, "gold_reward"),
            _scatter_plot(result, "time_per_token", "gold_reward"),
            *_front_plots(result),
            _scatter_plot(result, "log_probability", "gold_reward"),
            _scatter_plot(result, "diversity", "gold_reward"),
        ]
    if result.benchmark == "detox":
        return [
            _interval_plot(result, "expected_maximum_toxicity"),
            _scatter_plot(result, "perplexity", "expected_maximum_toxicity"),
            _scatter_plot(result, "time_per_token", "expected_maximum_toxicity"),
            *_threshold_plots(result),
        ]
    if result.benchmark == "detection":
        return [
            _interval_plot(result, "detected"),
            _scatter_plot(result, "time_ratio", "detected"),
            _stopping_plot(result),
        ]
    return [
        _interval_plot(result, "speed_up", reference=1.0),
        _interval_plot(result, "tokens_per_step", reference=1.0),
        *_acceptance_plots(result),
    ]


def _interval_plot(
    result: BenchmarkResult, name: str, reference: float | None = None
) -> IntervalPlot:
    metric = metric_info(name)
    measured = [m for m in result.methods.values() if name in m.metrics]
    points = [plot_point(m.label, m.metrics[name], metric) for m in measured]
    if reference is None and "plain" in result.methods and name in result.methods["plain"].metrics:
        reference = plot_point("", result.methods["plain"].metrics[name], metric).mean
    return IntervalPlot(_capitalised(metric.label), name_with_unit(metric), points, reference)


def _scatter_plot(result: BenchmarkResult, x: str, y: str) -> ScatterPlot:
    across, up = metric_info(x), metric_info(y)
    points = [
        (plot_point(m.label, m.metrics[x], across), plot_point(m.label, m.metrics[y], up))
        for name, m in result.methods.items()
        # Other strengths have a plot of their own.
        if STRENGTH_MARK not in name and x in m.metrics and y in m.metrics
    ]
    title = _capitalised(f"{up.label} against {across.label}")
    return ScatterPlot(title, name_with_unit(across), name_with_unit(up), points)


def _front_plots(result: BenchmarkResult) -> list[LinePlot]:
    """Gold reward against KL, a line a family; plain is where each of them starts."""
    across, up = metric_info("kl"), metric_info("gold_reward")
    series = []
    for name, front in result.fronts.items():
        methods = [result.methods[member].metrics for member in ("plain", *front.methods)]
        points = sorted(((m["kl"].mean, m["gold_reward"]) for m in methods), key=lambda p: p[0])
        mean, low, high = (
            [getattr(figure, bound) for _, figure in points] for bound in ("mean", "low", "high")
        )
        label = result.methods[name].label if name in result.methods else name
        series.append(PlotSeries(label, [kl for kl, _ in points], mean, low, high))
    title = "Reward against KL, by strength"
    return [LinePlot(title, name_with_unit(across), up.label, series)] if series else []


def _stopping_plot(result: BenchmarkResult) -> LinePlot:
    """What early stopping saves of offending texts, by false alarms: one line a monitor."""
    series = []
    for method in result.methods.values():
        saved = {
            float(name.removeprefix("saved_")): plot_point("", figure, metric_info(name))
            for name, figure in method.metrics.items()
            if name.startswith("saved_")
        }
        if saved:
            at = sorted(saved)
            mean, low, high = (
                [getattr(saved[threshold], bound) for threshold in at]
                for bound in ("mean", "low", "high")
            )
            series.append(PlotSeries(method.label, at, mean, low, high))
    return LinePlot("Tokens saved by stopping", "false alarms", "of offending texts, %", series)


def _threshold_plots(result: BenchmarkResult) -> list[LinePlot]:
    """Toxicity probability by what counts as toxic: one line a method."""
    series = []
    for method in result.methods.values():
        found = {0.5: method.metrics["toxicity_probability"]} | {
            float(name.removeprefix("probability_at_")): figure
            for name, figure in method.metrics.items()
            if name.startswith("probability_at_")
        }
        if len(found) == 1:
            continue
        at = sorted(found)
        mean, low, high = (
            [100 * getattr(found[threshold], bound) for threshold in at]
            for bound in ("mean", "low", "high")
        )
        series.append(PlotSeries(method.label, at, mean, low, high))
    title = "Toxicity probability by threshold"
    axis = "toxicity probability, %"
    return [LinePlot(title, "threshold", axis, series)] if series else []


def _acceptance_plots(result: BenchmarkResult) -> list[LinePlot]:
    """One line a drafter; none where nothing was drafted."""
    series = []
    for method in result.methods.values():
        found = {
            int(name[1]): plot_point("", figure, metric_info(key))
            for key, figure in method.metrics.items()
            if (name := _ACCEPTANCE.fullmatch(key))
        }
        if found:
            positions = sorted(found)
            mean, low, high = (
                [getattr(found[position], bound) for position in positions]
                for bound in ("mean", "low", "high")
            )
            series.append(PlotSeries(method.label, positions, mean, low, high))
    title = "Accepted by draft position"
    return [LinePlot(title, "draft position", "accepted, %", series, True)] if series else []


def _capitalised(text: str) -> str:
    return text[:1].upper() + text[1:]


_TITLES = {
    "preference": "Guided by a reward",
    "detox": "Guided away from toxicity",
    "detection": "Flagged while it is written",
    "speedup": "Drafted tokens",
}
_NOTES = {
    "preference": "Caches on everywhere. The gold reward guided nothing; each "
    "guide's own reward is shown beside it, since a guide always pleases itself. "
    "Wins are of the same prompt and repeat; equal rewards are ties and count half.",
    "detox": "Sampled continuations, caches on everywhere. The classifier reads the continuation "
    "alone. Perplexity is under the base, by token, and no token is left out.",
    "detection": "A text is flagged at the first token whose score reaches a threshold. Shares "
    "flagged, on time and missed are at the threshold that flags 1 % of the texts that do not "
    "offend, chosen on these texts. On time: before the offending span ends, or the text where no "
    "span is known. Stopping there saves tokens of offending texts and loses tokens of the others.",
    "speedup": "Caches on; a batch holds copies of one prompt. Speed-up is a ratio of sums, "
    "tokens over seconds against plain's, prompts included. A step is one verification by the "
    "base: a token of its own and what it accepted of the draft.",
}
_SHARED_BATCH_NOTE = (
    "Prompts share batches, in which short texts wait for the longest: times are no method's own."
)
_SHOWN_DIVERGENCES = 12


def benchmark_report(result: BenchmarkResult) -> Report:
    """One benchmark as a report of its own."""
    graft = result.settings.methods["insertion"].models[0]
    title = f"{_TITLES[result.benchmark]}: {graft.name}"
    sampling, prompts = result.settings.sampling, result.settings.prompts
    lead = (
        f"{len(result.methods)} methods, {prompts.count} prompts of {prompts.file}, "
        f"{result.settings.samples_per_prompt} each, up to {sampling['max_new_tokens']} new tokens."
    )
    if result.benchmark == "detection":
        lead = f"{len(result.methods)} monitors, {prompts.count} texts of {prompts.file}."
    sections = list(benchmark_sections(result, alone=True))
    return Report(title, lead, sections, list(_facts(result)), result.model_dump(mode="json"))


def benchmark_sections(result: BenchmarkResult, *, alone: bool = False) -> Iterator[ReportSection]:
    """What was found, the figures with plots, comparisons, memory, and where outputs differ.

    Their titles say which benchmark this is, unless it is `alone` on its page.
    """
    title = _TITLES[result.benchmark]
    before = "" if alone else f"{title}. "
    yield ReportSection(
        "Figures" if alone else title,
        [
            *(f"Warning: {text}." for text in result.warnings),
            *result.findings,
            _NOTES[result.benchmark],
            *([_SHARED_BATCH_NOTE] if result.settings.together > 1 else []),
        ],
        [_figures_table(result, lambda method: method.metrics, figure_cell)],
        benchmark_plots(result),
    )
    yield ReportSection(
        f"{before}Difference from plain decoding",
        ["Paired by prompt; coloured where the 95 % interval leaves nought out."],
        [_figures_table(result, lambda method: method.against_plain, difference_cell)],
    )
    yield from _details(before, result)
    if result.fronts:
        yield _front_section(before, result)
    process = bytes_text(result.process_memory)
    counted = (
        "Counted: the parameters that a method needs, and its caches at their largest. The "
        f"whole process, which holds all methods at once, peaked at {process}."
    )
    yield ReportSection(f"{before}Memory", [counted], [_memory_table(result)])
    if any(method.divergences for method in result.methods.values()):
        yield _divergence_section(before, result)


def _figures_table(
    result: BenchmarkResult,
    of: Callable[[MethodResult], dict[str, Estimate]],
    cell: Callable[[Estimate, Metric], Cell],
    detail: str | None = None,
) -> ReportTable:
    """Metrics down, methods across; what is nought for all of them is left to result.json."""
    methods = [method for method in result.methods.values() if of(method)]
    # The method with most metrics says in which order they come.
    longest_first = sorted(methods, key=lambda method: -len(of(method)))
    rows: list[list[Cell | str]] = []
    for name in dict.fromkeys(name for method in longest_first for name in of(method)):
        if metric_info(name).detail != detail:
            continue
        if all(figure == 0 for m in methods if name in of(m) for figure in _bounds(of(m)[name])):
            continue
        metric = metric_info(name)
        cells = [cell(of(m)[name], metric) if name in of(m) else Cell("-") for m in methods]
        rows.append([name_with_unit(metric), *cells])
    count = result.settings.prompts.count
    return ReportTable([f"n = {count} prompts", *(m.label for m in methods)], rows)


def _bounds(figure: Estimate) -> tuple[float, float]:
    return figure.low, figure.high


def _memory_table(result: BenchmarkResult) -> ReportTable:
    parts: list[tuple[str, Callable[[MethodMemory], int]]] = [
        ("weights", lambda memory: memory.weights),
        ("caches", lambda memory: memory.caches),
        ("together", lambda memory: memory.total),
    ]
    methods = list(result.methods.values())
    rows = [[name, *(bytes_text(of(m.memory)) for m in methods)] for name, of in parts]
    return ReportTable(["", *(m.label for m in methods)], rows)


def _details(before: str, result: BenchmarkResult) -> Iterator[ReportSection]:
    """By category of the prompts, by label and by threshold, where there is such a thing."""
    methods = list(result.methods.values())
    categories = list(methods[0].by_category)
    if categories:
        names = dict.fromkeys(n for m in methods for c in m.by_category.values() for n in c)
        tables = [_category_table(name, methods, categories) for name in names]
        text = "n counts the prompts of a category: intervals of small ones are wide."
        yield ReportSection(f"{before}By category of the prompts", [text], tables)
    if any(metric_info(name).detail == "label" for name in methods[0].metrics):
        labels = _figures_table(result, lambda method: method.metrics, figure_cell, "label")
        thresholds = _figures_table(result, lambda method: method.metrics, figure_cell, "threshold")
        text = "Expected maximum of each label; then prompts any of whose texts is so toxic, in %."
        yield ReportSection(f"{before}By label and by threshold", [text], [labels, thresholds])


def _category_table(name: str, methods: list[MethodResult], categories: list[str]) -> ReportTable:
    metric = metric_info(name)
    rows: list[list[Cell | str]] = []
    for category in categories:
        figures = [m.by_category[category].get(name) for m in methods]
        n = next((figure.n for figure in figures if figure is not None), 0)
        cells = [Cell("-") if f is None else figure_cell(f, metric) for f in figures]
        rows.append([f"{category or 'others'}, n = {n}", *cells])
    return ReportTable([name_with_unit(metric), *(m.label for m in methods)], rows)


def _front_section(before: str, result: BenchmarkResult) -> ReportSection:
    up_to = max(front.up_to for front in result.fronts.values())
    rows: list[list[Cell | str]] = [
        [name, figure_cell(front.area, metric_info("gold_reward")), str(len(front.methods))]
        for name, front in result.fronts.items()
    ]
    explained = (
        "Gold reward gained over plain, as the mean over KL to the base from plain's up to "
        f"{up_to:.3g} nats a token, which every front reaches; between two strengths the lower "
        "one counts. A guide that buys more reward for the same KL has the larger area."
    )
    table = ReportTable(["front", "area", "strengths"], rows)
    return ReportSection(f"{before}Reward against KL", [explained], [table])


def _divergence_section(before: str, result: BenchmarkResult) -> ReportSection:
    rows = [
        [method.label, d.prompt, str(d.position), f"{d.gap:.3g}"]
        for method in result.methods.values()
        for d in method.divergences
    ]
    explained = (
        "The first token that differs, and how far apart the base's logits of the two tokens are "
        "there. Drafts are verified several tokens at a time, where the base rounds otherwise "
        "than one by one: a tiny gap is a tie, a wide one a fault."
    )
    more = len(rows) - _SHOWN_DIVERGENCES
    text = [explained, f"{more} more are in result.json."] if more > 0 else [explained]
    table = ReportTable(["method", "prompt", "token", "gap"], rows[:_SHOWN_DIVERGENCES])
    return ReportSection(f"{before}Where the output differs from plain decoding", text, [table])


def _facts(result: BenchmarkResult) -> Iterator[tuple[str, str]]:
    settings = result.settings
    sampling = ", ".join(f"{name} {value}" for name, value in settings.sampling.items())
    yield "key", result.key[:16]
    yield "prompts", f"{settings.prompts.file}, sha256 {settings.prompts.digest[:12]}"
    if settings.prompts.truncated:
        yield "cut", f"{settings.prompts.truncated} prompts, to their last tokens"
    shared = f", {settings.together} prompts together" if settings.together > 1 else ""
    yield "decoding", f"{sampling}, seed {settings.seed}, batch {settings.batch}{shared}"
    yield "base", f"sha256 {settings.methods['plain'].models[0].base or 'unknown'}"
    for name, method in settings.methods.items():
        models = "; ".join(f"{m.name}, sha256 {m.weights[:12]}" for m in method.models)
        steering = ", ".join(f"{k} {v}" for k, v in method.steering.items())
        yield name, f"{models}{'; ' + steering if steering else ''}"
    for role, scorer in result.scorers.items():
        yield f"scorer {role}", f"{scorer.name} ({scorer.kind}), sha256 {scorer.digest[:12]}"
    for session in result.sessions:
        yield from _session_facts(session)


def _session_facts(session: dict[str, Any]) -> Iterator[tuple[str, str]]:
    machine, versions = session["hardware"], session["versions"]
    yield (
        "machine",
        ", ".join([f"{machine['cpu']}, {machine['cores']} cores", *machine["accelerators"]]),
    )
    yield "torch threads", str(session["threads"])
    packages = [name for name in ("torch", "transformers", "detoxify") if name in versions]
    yield "versions", ", ".join(f"{name} {versions[name]}" for name in packages)
