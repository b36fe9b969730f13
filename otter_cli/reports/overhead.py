"""The result of `otter bench overhead` as a report: time, space, what is saved, and groups."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from otter_cli.benchmarks.metrics.estimates import Estimate
from otter_cli.benchmarks.overhead.result import (
    BaseAndGraft,
    MeasuredGroup,
    OverheadResult,
    OverheadRow,
    RooflineBound,
)
from otter_cli.core.formatting import bytes_text, count_text, percent_text
from otter_cli.reports.page import (
    Cell,
    IntervalPlot,
    LinePlot,
    Plot,
    PlotPoint,
    PlotSeries,
    Report,
    ReportSection,
    ReportTable,
    number_text,
)


def overhead_report(result: OverheadResult) -> Report:
    """One measurement as a report of its own."""
    s = result.settings
    lead = (
        f"{s.dtype} on {s.device}, {s.threads} threads, batch {s.batch}, {s.context} tokens of "
        f"context; {s.repeats} rounds, base and graft in turns. Ratios are medians over rounds."
    )
    if s.stream:
        lead += f" Streams of few tokens run by {s.stream}."
    return Report(
        f"Overhead: {s.subject}",
        lead,
        list(_sections(result)),
        list(_facts(result)),
        result.model_dump(mode="json"),
    )


def _sections(result: OverheadResult) -> Iterator[ReportSection]:
    yield _time_section(result)
    yield _space_section(result.rows)
    if any(row.saved for row in result.rows):
        yield _saved_section(result.rows)
    for group in result.groups:
        yield _group_section(group)


def _time_section(result: OverheadResult) -> ReportSection:
    rows: list[list[Cell | str]] = []
    points = []
    for row in result.rows:
        for kind, ratio, ms, bound in (
            ("decode", row.decode_ratio, row.decode_ms, row.bound.decode),
            ("prefill", row.prefill_ratio, row.prefill_ms, row.bound.prefill),
        ):
            name = f"{row.name}, {kind}"
            rows.append([name, *_time_cells(row, ratio, ms, bound)])
            points.append(PlotPoint(name, *_interval(ratio), bound.ratio))
        if (later := row.read_later) is not None:
            name = f"{row.name}, decode, read {later.every} at once"
            cells = [Cell(percent_text(row.parameter_ratio), "parameters"), ratio_cell(later.ratio)]
            rows.append([name, *cells, f"{later.bound:.3f}", "", ""])
            points.append(PlotPoint(name, *_interval(later.ratio), later.bound))
    head = ["", "of the base", "ratio", "bound", "ms", "bound over time"]
    equal = sum(row.logits_equal for row in result.rows)
    compared = sum(row.logits_compared for row in result.rows)
    rates = result.rates
    bounded = (
        "The bound is the ratio of the least times for the bytes and operations counted, at "
        f"{rates.bytes_per_second / 1e9:.1f} GB/s and {rates.flops_per_second / 1e9:.0f} GFLOP/s, "
        "the best measured in this run, a tick in the plot; bound over time: the share of it that "
        "was reached."
    )
    text = [f"Logits equal to the base's bit for bit in {equal} of {compared} passes.", bounded]
    first = 2 + (result.rows[0].read_later is not None)
    plots: list[Plot] = [IntervalPlot("Time over the base's", "graft / base", points[:first], 1.0)]
    plots += _sweep_plots(result.rows[1:]) if len(result.rows) > 1 else []
    return ReportSection("Time", text, [ReportTable(head, rows)], plots)


def _sweep_plots(rows: Sequence[OverheadRow]) -> list[LinePlot]:
    """A sweep's ratios over the share inserted, what it was spent on apart, beside their bound."""
    plots = []
    for kind in ("decode", "prefill"):
        series = []
        for spent in dict.fromkeys(row.name.partition(",")[0] for row in rows):
            own = [row for row in rows if row.name.partition(",")[0] == spent]
            at = [100 * row.parameter_ratio for row in own]
            ratios = [row.decode_ratio if kind == "decode" else row.prefill_ratio for row in own]
            means, lows, highs = (
                [getattr(ratio, name) for ratio in ratios] for name in ("mean", "low", "high")
            )
            series.append(PlotSeries(spent, at, means, lows, highs))
            least = [getattr(row.bound, kind).ratio for row in own]
            series.append(PlotSeries(f"{spent}, bound", at, least))
        title = f"{kind.capitalize()} as the insertion grows"
        plots.append(LinePlot(title, "inserted, % of the base", "time over the base's", series))
    return plots


def _time_cells(
    row: OverheadRow, ratio: Estimate, ms: BaseAndGraft, bound: RooflineBound
) -> list[Cell | str]:
    return [
        Cell(percent_text(row.parameter_ratio), "parameters"),
        ratio_cell(ratio),
        Cell(f"{bound.ratio:.3f}", f"by {bound.limit}"),
        Cell(number_text(ms.graft), f"base {number_text(ms.base)}"),
        Cell(percent_text(bound.reached.graft), f"base {percent_text(bound.reached.base)}"),
    ]


def _interval(figure: Estimate) -> tuple[float, float, float]:
    return figure.mean, figure.low, figure.high


def ratio_cell(figure: Estimate) -> Cell:
    return Cell(f"{figure.mean:.3f}", f"{figure.low:.3f} to {figure.high:.3f}, n = {figure.n}")


def _space_section(rows: Sequence[OverheadRow]) -> ReportSection:
    table = ReportTable(
        ["", "trainable", "stored", "KV cache a token", "peak, base", "peak, graft"],
        [
            [
                row.name,
                count_text(row.trainable),
                bytes_text(row.stored_bytes if row.file_bytes is None else row.file_bytes),
                Cell(
                    bytes_text(row.cache_bytes_per_token.graft),
                    f"base {bytes_text(row.cache_bytes_per_token.base)}",
                ),
                bytes_text(row.peak_bytes.base),
                Cell(
                    bytes_text(row.peak_bytes.graft),
                    f"{row.peak_bytes.graft / row.peak_bytes.base:.3f} of base",
                ),
            ]
            for row in rows
        ],
    )
    text = ["Peak: the weights, and what a prefill holds above them by the allocator's count."]
    return ReportSection("Space", text, [table])


def _saved_section(rows: Sequence[OverheadRow]) -> ReportSection:
    body: list[list[Cell | str]] = []
    for row in rows:
        if row.saved:
            times = [row.saved.decode_time, row.saved.prefill_time]
            body.append(
                [
                    row.name,
                    *(_share_cell(figure) for figure in times),
                    percent_text(row.saved.trainable),
                    percent_text(row.saved.stored),
                    percent_text(row.saved.cache),
                ]
            )
    head = ["", "time, decode", "time, prefill", "trainable", "stored", "KV cache"]
    text = (
        "Of what a separate reward model of the base's size adds, measured in the same rounds: "
        "the share that the insertion saves (METHOD, 5)."
    )
    return ReportSection("Saved against a separate reward model", [text], [ReportTable(head, body)])


def _share_cell(figure: Estimate) -> Cell:
    return Cell(
        percent_text(figure.mean), f"{percent_text(figure.low)} to {percent_text(figure.high)}"
    )


def _group_section(group: MeasuredGroup) -> ReportSection:
    """Contestants with their ratio, floor and figures; only columns that somebody has."""
    names = list(dict.fromkeys(name for line in group.lines for name in line.figures))
    timed = any(line.ratio for line in group.lines)
    bounded = any(line.floor is not None for line in group.lines)
    head = [
        f"a {group.per}",
        "ms",
        *(["ratio"] * timed),
        *(["floor"] * bounded),
        *map(_without_unit, names),
    ]
    body: list[list[Cell | str]] = []
    for line in group.lines:
        cells: list[Cell | str] = [line.name, number_text(line.milliseconds)]
        if timed:
            cells.append(ratio_cell(line.ratio) if line.ratio else "-")
        if bounded:
            cells.append("-" if line.floor is None else f"{line.floor:.3f}")
        cells += [_figure_cell(name, line.figures.get(name)) for name in names]
        body.append(cells)
    plots = []
    if timed:
        points = [PlotPoint(line.name, line.ratio.mean, line.ratio.low, line.ratio.high, line.floor)
                  for line in group.lines if line.ratio]  # fmt: skip
        plots = [IntervalPlot(group.title, f"time over {group.reference}'s", points, 1.0)]
    return ReportSection(group.title, group.notes, [ReportTable(head, body)], plots)


def _without_unit(name: str) -> str:
    return name.removesuffix(", bytes").removesuffix(", share")


def _figure_cell(name: str, value: float | Estimate | None) -> Cell | str:
    if value is None:
        return "-"
    if isinstance(value, Estimate):
        return _share_cell(value) if name.endswith(", share") else ratio_cell(value)
    if name.endswith(", bytes"):
        return bytes_text(value)
    if name.endswith(", share"):
        return percent_text(value)
    return count_text(value) if abs(value) >= 10_000 else number_text(value)


def _facts(result: OverheadResult) -> Iterator[tuple[str, str]]:
    found = result.provenance
    machine, versions = found["hardware"], found["versions"]
    yield "machine", f"{result.machine}: {machine['cpu']}, {machine['cores']} cores"
    for row in result.rows:
        sizes = ", ".join(f"{name} {value}" for name, value in row.insertion.items())
        yield row.name, sizes
    packages = [name for name in ("torch", "transformers", "peft") if name in versions]
    yield "versions", ", ".join(f"{name} {versions[name]}" for name in packages)
    yield "command", " ".join(["otter", *found["command"][1:]])
