"""A benchmark's result as sections of a report."""

from collections.abc import Callable, Iterator
from typing import Any

from otter_cli.benchmarks.estimates import Estimate
from otter_cli.benchmarks.metrics.catalog import Metric, describe
from otter_cli.benchmarks.result import Memory, MethodResult, Result
from otter_cli.core.units import bytes_text
from otter_cli.reports.benchmark_plots import benchmark_plots
from otter_cli.reports.figures import difference_cell, figure_cell, name_with_unit
from otter_cli.reports.page import Cell, Report, Section, Table

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
_TOGETHER = (
    "Prompts share batches, in which short texts wait for the longest: times are no method's own."
)
_MOST_DIVERGENCES = 12


def benchmark_report(result: Result) -> Report:
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


def benchmark_sections(result: Result, *, alone: bool = False) -> Iterator[Section]:
    """What was found, the figures with plots, comparisons, memory, and where outputs differ.

    Their titles say which benchmark this is, unless it is `alone` on its page.
    """
    title = _TITLES[result.benchmark]
    before = "" if alone else f"{title}. "
    yield Section(
        "Figures" if alone else title,
        [
            *(f"Warning: {text}." for text in result.warnings),
            *result.findings,
            _NOTES[result.benchmark],
            *([_TOGETHER] if result.settings.together > 1 else []),
        ],
        [_figures(result, lambda method: method.metrics, figure_cell)],
        benchmark_plots(result),
    )
    yield Section(
        f"{before}Difference from plain decoding",
        ["Paired by prompt; coloured where the 95 % interval leaves nought out."],
        [_figures(result, lambda method: method.against_plain, difference_cell)],
    )
    yield from _details(before, result)
    if result.fronts:
        yield _fronts(before, result)
    process = bytes_text(result.process_memory)
    counted = (
        "Counted: the parameters that a method needs, and its caches at their largest. The "
        f"whole process, which holds all methods at once, peaked at {process}."
    )
    yield Section(f"{before}Memory", [counted], [_memory(result)])
    if any(method.divergences for method in result.methods.values()):
        yield _divergences(before, result)


def _figures(
    result: Result,
    of: Callable[[MethodResult], dict[str, Estimate]],
    cell: Callable[[Estimate, Metric], Cell],
    detail: str | None = None,
) -> Table:
    """Metrics down, methods across; what is nought for all of them is left to result.json."""
    methods = [method for method in result.methods.values() if of(method)]
    # The method with most metrics says in which order they come.
    longest_first = sorted(methods, key=lambda method: -len(of(method)))
    rows: list[list[Cell | str]] = []
    for name in dict.fromkeys(name for method in longest_first for name in of(method)):
        if describe(name).detail != detail:
            continue
        if all(figure == 0 for m in methods if name in of(m) for figure in _bounds(of(m)[name])):
            continue
        metric = describe(name)
        cells = [cell(of(m)[name], metric) if name in of(m) else Cell("-") for m in methods]
        rows.append([name_with_unit(metric), *cells])
    count = result.settings.prompts.count
    return Table([f"n = {count} prompts", *(m.label for m in methods)], rows)


def _bounds(figure: Estimate) -> tuple[float, float]:
    return figure.low, figure.high


def _memory(result: Result) -> Table:
    parts: list[tuple[str, Callable[[Memory], int]]] = [
        ("weights", lambda memory: memory.weights),
        ("caches", lambda memory: memory.caches),
        ("together", lambda memory: memory.total),
    ]
    methods = list(result.methods.values())
    rows = [[name, *(bytes_text(of(m.memory)) for m in methods)] for name, of in parts]
    return Table(["", *(m.label for m in methods)], rows)


def _details(before: str, result: Result) -> Iterator[Section]:
    """By category of the prompts, by label and by threshold, where there is such a thing."""
    methods = list(result.methods.values())
    categories = list(methods[0].by_category)
    if categories:
        names = dict.fromkeys(n for m in methods for c in m.by_category.values() for n in c)
        tables = [_by_category(name, methods, categories) for name in names]
        text = "n counts the prompts of a category: intervals of small ones are wide."
        yield Section(f"{before}By category of the prompts", [text], tables)
    if any(describe(name).detail == "label" for name in methods[0].metrics):
        labels = _figures(result, lambda method: method.metrics, figure_cell, "label")
        thresholds = _figures(result, lambda method: method.metrics, figure_cell, "threshold")
        text = "Expected maximum of each label; then prompts any of whose texts is so toxic, in %."
        yield Section(f"{before}By label and by threshold", [text], [labels, thresholds])


def _by_category(name: str, methods: list[MethodResult], categories: list[str]) -> Table:
    metric = describe(name)
    rows: list[list[Cell | str]] = []
    for category in categories:
        figures = [m.by_category[category].get(name) for m in methods]
        n = next((figure.n for figure in figures if figure is not None), 0)
        cells = [Cell("-") if f is None else figure_cell(f, metric) for f in figures]
        rows.append([f"{category or 'others'}, n = {n}", *cells])
    return Table([name_with_unit(metric), *(m.label for m in methods)], rows)


def _fronts(before: str, result: Result) -> Section:
    up_to = max(front.up_to for front in result.fronts.values())
    rows: list[list[Cell | str]] = [
        [name, figure_cell(front.area, describe("gold_reward")), str(len(front.methods))]
        for name, front in result.fronts.items()
    ]
    explained = (
        "Gold reward gained over plain, as the mean over KL to the base from plain's up to "
        f"{up_to:.3g} nats a token, which every front reaches; between two strengths the lower "
        "one counts. A guide that buys more reward for the same KL has the larger area."
    )
    table = Table(["front", "area", "strengths"], rows)
    return Section(f"{before}Reward against KL", [explained], [table])


def _divergences(before: str, result: Result) -> Section:
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
    more = len(rows) - _MOST_DIVERGENCES
    text = [explained, f"{more} more are in result.json."] if more > 0 else [explained]
    table = Table(["method", "prompt", "token", "gap"], rows[:_MOST_DIVERGENCES])
    return Section(f"{before}Where the output differs from plain decoding", text, [table])


def _facts(result: Result) -> Iterator[tuple[str, str]]:
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
        yield from _session(session)


def _session(session: dict[str, Any]) -> Iterator[tuple[str, str]]:
    machine, versions = session["hardware"], session["versions"]
    yield (
        "machine",
        ", ".join([f"{machine['cpu']}, {machine['cores']} cores", *machine["accelerators"]]),
    )
    yield "torch threads", str(session["threads"])
    packages = [name for name in ("torch", "transformers", "detoxify") if name in versions]
    yield "versions", ", ".join(f"{name} {versions[name]}" for name in packages)
