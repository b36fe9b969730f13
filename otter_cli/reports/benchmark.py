"""A benchmark's result as a report: findings, figures, plots, comparisons, memory."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from otter_cli.benchmarks.metrics.estimates import Estimate, Metric, metric_info
from otter_cli.benchmarks.records import ARGS, STRENGTH_MARK, TASK_HEAD
from otter_cli.benchmarks.results import BenchmarkResult, ExampleText, MethodResult
from otter_cli.core.formatting import bytes_text
from otter_cli.reports.page import (
    Cell,
    ColouredText,
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
    named_values,
    plot_point,
    scale_of,
)


def benchmark_plots(result: BenchmarkResult) -> list[Plot]:
    """The benchmark's main figure with its intervals, and its costs."""
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
        title, axis = "Tokens saved by stopping", "of offending texts, %"
        saved = _numbered_metrics(result, "saved_")
        return [
            _interval_plot(result, "detected"),
            _scatter_plot(result, "time_ratio", "detected"),
            LinePlot(title, "false alarms", axis, saved),
        ]
    title, accepted = "Accepted by draft position", _numbered_metrics(result, "acceptance_")
    return [
        _interval_plot(result, "speed_up", reference=1.0),
        _interval_plot(result, "tokens_per_step", reference=1.0),
        *([LinePlot(title, "draft position", "accepted, %", accepted, True)] if accepted else []),
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
    x_metric, y_metric = metric_info(x), metric_info(y)
    points = [
        (plot_point(m.label, m.metrics[x], x_metric), plot_point(m.label, m.metrics[y], y_metric))
        for name, m in result.methods.items()
        # The other strengths of a method are in _front_plots.
        if STRENGTH_MARK not in name and x in m.metrics and y in m.metrics
    ]
    title = _capitalised(f"{y_metric.label} against {x_metric.label}")
    return ScatterPlot(title, name_with_unit(x_metric), name_with_unit(y_metric), points)


def _front_plots(result: BenchmarkResult) -> list[LinePlot]:
    """Gold reward against KL: a line for each guide, which starts at plain decoding."""
    x_metric, y_metric = metric_info("kl"), metric_info("gold_reward")
    series = []
    for name, front in result.fronts.items():
        methods = [result.methods[member].metrics for member in ("plain", *front.methods)]
        label = result.methods[name].label if name in result.methods else name
        points = [(metrics["kl"].mean, metrics["gold_reward"]) for metrics in methods]
        series.append(PlotSeries.of(label, points))
    title = "Reward against KL, by strength"
    return [LinePlot(title, name_with_unit(x_metric), y_metric.label, series)] if series else []


def _threshold_plots(result: BenchmarkResult) -> list[LinePlot]:
    # The metric without a number in its name counts a text as toxic from 0.5 on.
    series = _numbered_metrics(result, "probability_at_", {0.5: "toxicity_probability"})
    title, axis = "Toxicity probability by threshold", "toxicity probability, %"
    return [LinePlot(title, "threshold", axis, series)] if series else []


def _numbered_metrics(
    result: BenchmarkResult, prefix: str, others: dict[float, str] | None = None
) -> list[PlotSeries]:
    """A line for each method that has metrics named `prefix` and a number, which is their x.

    `others` are more metrics of these lines, by their x, in the same unit.
    """
    series = []
    for method in result.methods.values():
        names = {
            float(name.removeprefix(prefix)): name
            for name in method.metrics
            if name.startswith(prefix)
        }
        if names:
            metric = metric_info(next(iter(names.values())))
            names |= others or {}
            points = {x: plot_point("", method.metrics[name], metric) for x, name in names.items()}
            series.append(PlotSeries.of(method.label, points.items()))
    return series


def _capitalised(text: str) -> str:
    return text[:1].upper() + text[1:]


_TITLES = {
    "preference": "Guided by a reward",
    "detox": "Guided away from toxicity",
    "detection": "Flagged while it is written",
    "speedup": "Drafted tokens",
}
_NOTES = {
    "preference": "All methods use caches. The gold reward guided no method. Each guide's own "
    "reward is shown beside it: a guide optimises that reward, so its rise is no evidence. "
    "Wins compare the same prompt and repeat; equal rewards are ties and count half.",
    "detox": "Sampled continuations; all methods use caches. The classifier reads the continuation "
    "alone. Perplexity is under the base, per token, over all tokens.",
    "detection": "A text is flagged at the first token whose score reaches a threshold. Shares "
    "flagged, on time and missed use the threshold that flags 1 % of the texts that do not "
    "offend, chosen on these texts. On time: before the offending span ends, or before the text "
    "ends where no span is known. Stopping there saves tokens of offending texts and loses tokens "
    "of the others.",
    "speedup": "All methods use caches; a batch holds copies of one prompt. Speed-up is tokens per "
    "second over plain decoding's, as a ratio of sums, prompts included. A step is one "
    "verification by the base: it gives one token of the base and the accepted draft tokens.",
}
_INTERVALS_NOTE = (
    "Intervals hold 95 % over the prompts of this run. Times and speed-ups are of this run on this "
    "machine: another machine, or other load, may give values outside them. `otter explain` says "
    "what each row means, such as `otter explain speed-up`."
)
_SHARED_BATCH_NOTE = (
    "Prompts share batches, and short texts wait for the longest: times depend on the other "
    "prompts of the batch."
)
_SHOWN_DIVERGENCES = 12


def benchmark_report(result: BenchmarkResult, examples: Sequence[ExampleText] = ()) -> Report:
    """One benchmark as a report of its own. It leads with its first finding. `examples`: texts of
    the run whose tokens are shown with their signal."""
    graft = result.settings.methods["insertion"].models[0]
    title = f"{_TITLES[result.benchmark]}: {graft.name}"
    sampling, prompts = result.settings.sampling, result.settings.prompts
    setting = (
        f"{len(result.methods)} methods, {prompts.count} prompts of {prompts.file}, "
        f"{result.settings.samples_per_prompt} each, up to {sampling['max_new_tokens']} new tokens."
    )
    if result.benchmark == "detection":
        setting = f"{len(result.methods)} monitors, {prompts.count} texts of {prompts.file}."
    first, *others = benchmark_sections(result, alone=True)
    answer = result.findings[0] if result.findings else setting
    sections = [replace(first, text=[*first.text[1:], setting] if result.findings else first.text)]
    if examples:
        sections.append(_examples_section(examples))
    sections += others
    return Report(title, answer, sections, list(_facts(result)), result.model_dump(mode="json"))


def _examples_section(examples: Sequence[ExampleText]) -> ReportSection:
    """Texts side by side, coloured on one scale for each signal."""
    texts = []
    for example in examples:
        same = [value for e in examples if e.signal == example.signal for value in e.values]
        texts.append(
            ColouredText(
                example.label, example.prompt, example.tokens, example.values, *scale_of(same)
            )
        )
    explained = (
        f"Each token with the value of {examples[0].signal!r} there, which the same forward pass "
        "gave. The first prompts of the run; text without colour was written without the signal."
    )
    return ReportSection("Texts, token by token", [explained], texts=texts)


def benchmark_sections(result: BenchmarkResult, *, alone: bool = False) -> Iterator[ReportSection]:
    """Findings, figures with plots, comparisons, memory, and where outputs differ.

    The titles name the benchmark, unless it is `alone` on its page.
    """
    title = _TITLES[result.benchmark]
    prefix = "" if alone else f"{title}. "
    yield ReportSection(
        "Figures" if alone else title,
        [*result.findings, *(f"Warning: {text}." for text in result.warnings), *_left_out(result)],
        [_figures_table(result, lambda method: method.metrics, figure_cell)],
        benchmark_plots(result),
        notes=[
            _NOTES[result.benchmark],
            *([_SHARED_BATCH_NOTE] if result.settings.together > 1 else []),
            _INTERVALS_NOTE,
        ],
    )
    for section in _detail_sections(prefix, result):
        yield section if alone else replace(section, level=3)


def _detail_sections(prefix: str, result: BenchmarkResult) -> Iterator[ReportSection]:
    yield ReportSection(
        f"{prefix}Difference from plain decoding",
        ["Paired by prompt. Coloured where the 95 % interval excludes zero."],
        [_figures_table(result, lambda method: method.against_plain, difference_cell)],
    )
    yield from _details(prefix, result)
    if result.fronts:
        yield _front_section(prefix, result)
    counted = (
        "Counted: the parameters that a method needs, and its caches at their largest. The whole "
        f"process holds all methods at once; its peak was {bytes_text(result.process_memory)}."
    )
    yield ReportSection(f"{prefix}Memory", [counted], [_memory_table(result)])
    if any(method.divergences for method in result.methods.values()):
        yield _divergence_section(prefix, result)


def _left_out(result: BenchmarkResult) -> Iterator[str]:
    """The usual controls that this run had no model for."""
    if result.benchmark == "detection":
        return
    if TASK_HEAD not in result.methods:
        yield (
            "Left out: the task head, a head on the base's final state and the control to beat; "
            "`otter train --baseline head` makes one."
        )
    if result.benchmark == "preference" and ARGS not in result.methods:
        yield "Left out: ARGS; `otter train --baseline separate` makes its reward model."


def _figures_table(
    result: BenchmarkResult,
    of: Callable[[MethodResult], dict[str, Estimate]],
    cell: Callable[[Estimate, Metric], Cell],
    detail: str | None = None,
) -> ReportTable:
    """A row for each metric and a column for each method, without metrics that are all zero."""
    methods = [method for method in result.methods.values() if of(method)]
    # The method with the most metrics gives their order.
    longest_first = sorted(methods, key=lambda method: -len(of(method)))
    rows: list[list[Cell | str]] = []
    for name in dict.fromkeys(name for method in longest_first for name in of(method)):
        metric = metric_info(name)
        figures = [of(method)[name] for method in methods if name in of(method)]
        if metric.detail != detail or not any(figure.low or figure.high for figure in figures):
            continue
        cells = [cell(of(m)[name], metric) if name in of(m) else Cell("-") for m in methods]
        rows.append([name_with_unit(metric), *cells])
    count = result.settings.prompts.count
    return ReportTable([f"n = {count} prompts", *(m.label for m in methods)], rows)


def _memory_table(result: BenchmarkResult) -> ReportTable:
    methods = list(result.methods.values())
    rows = [
        ["weights", *(bytes_text(method.memory.weights) for method in methods)],
        ["caches", *(bytes_text(method.memory.caches) for method in methods)],
        ["together", *(bytes_text(method.memory.total) for method in methods)],
    ]
    return ReportTable(["", *(method.label for method in methods)], rows)


def _details(prefix: str, result: BenchmarkResult) -> Iterator[ReportSection]:
    """Figures by category of the prompts, and by label and threshold, where they exist."""
    methods = list(result.methods.values())
    categories = list(methods[0].by_category)
    if categories:
        names = dict.fromkeys(n for m in methods for c in m.by_category.values() for n in c)
        tables = [_category_table(name, methods, categories) for name in names]
        text = "n counts the prompts of a category. Small categories have wide intervals."
        yield ReportSection(f"{prefix}By category of the prompts", [text], tables)
    if any(metric_info(name).detail == "label" for name in methods[0].metrics):
        labels = _figures_table(result, lambda method: method.metrics, figure_cell, "label")
        thresholds = _figures_table(result, lambda method: method.metrics, figure_cell, "threshold")
        text = (
            "First the expected maximum of each label, then the share of prompts with a text that "
            "reaches the threshold, in %."
        )
        yield ReportSection(f"{prefix}By label and by threshold", [text], [labels, thresholds])


def _category_table(name: str, methods: list[MethodResult], categories: list[str]) -> ReportTable:
    metric = metric_info(name)
    rows: list[list[Cell | str]] = []
    for category in categories:
        figures = [m.by_category[category].get(name) for m in methods]
        n = next((figure.n for figure in figures if figure is not None), 0)
        cells = [Cell("-") if f is None else figure_cell(f, metric) for f in figures]
        rows.append([f"{category or 'others'}, n = {n}", *cells])
    return ReportTable([name_with_unit(metric), *(m.label for m in methods)], rows)


def _front_section(prefix: str, result: BenchmarkResult) -> ReportSection:
    up_to = max(front.up_to for front in result.fronts.values())
    rows: list[list[Cell | str]] = [
        [name, figure_cell(front.area, metric_info("gold_reward")), str(len(front.methods))]
        for name, front in result.fronts.items()
    ]
    explained = (
        "Gold reward gained over plain decoding, averaged over KL to the base from plain's up to "
        f"{up_to:.3g} nats a token, which every front reaches. Between two strengths the lower "
        "reward counts. A guide with more reward at the same KL has the larger area."
    )
    table = ReportTable(["front", "area", "strengths"], rows)
    return ReportSection(f"{prefix}Reward against KL", [explained], [table])


def _divergence_section(prefix: str, result: BenchmarkResult) -> ReportSection:
    rows = [
        [method.label, d.prompt, str(d.position), f"{d.gap:.3g}"]
        for method in result.methods.values()
        for d in method.divergences
    ]
    explained = (
        "The first token that differs, and the gap between the base's logits of the two tokens. "
        "A pass over several draft tokens rounds differently from passes over one token: a tiny "
        "gap is a tie, a wide gap is a fault."
    )
    more = len(rows) - _SHOWN_DIVERGENCES
    text = [explained, f"{more} more are in result.json."] if more > 0 else [explained]
    table = ReportTable(["method", "prompt", "token", "gap"], rows[:_SHOWN_DIVERGENCES])
    return ReportSection(f"{prefix}Where the output differs from plain decoding", text, [table])


def _facts(result: BenchmarkResult) -> Iterator[tuple[str, str]]:
    settings = result.settings
    yield "key", result.key[:16]
    yield "prompts", f"{settings.prompts.file}, sha256 {settings.prompts.digest[:12]}"
    if settings.prompts.truncated:
        yield "cut", f"{settings.prompts.truncated} prompts, to their last tokens"
    shared = f", {settings.together} prompts together" if settings.together > 1 else ""
    sampling = named_values(settings.sampling)
    yield "decoding", f"{sampling}, seed {settings.seed}, batch {settings.batch}{shared}"
    yield "base", f"sha256 {settings.methods['plain'].models[0].base or 'unknown'}"
    for name, method in settings.methods.items():
        models = "; ".join(f"{m.name}, sha256 {m.weights[:12]}" for m in method.models)
        steering = named_values(method.steering)
        yield name, f"{models}{'; ' + steering if steering else ''}"
    for role, scorer in result.scorers.items():
        yield f"scorer {role}", f"{scorer.name} ({scorer.kind}), sha256 {scorer.digest[:12]}"
    for session in result.sessions:
        yield from _session_facts(session)


def _session_facts(session: dict[str, Any]) -> Iterator[tuple[str, str]]:
    machine, versions = session["hardware"], session["versions"]
    devices = [f"{machine['cpu']}, {machine['cores']} cores", *machine["accelerators"]]
    yield "machine", ", ".join(devices)
    yield "torch threads", str(session["threads"])
    yield "versions", named_values(versions, ("torch", "transformers", "detoxify"))
