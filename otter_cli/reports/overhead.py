"""The result of `otter bench overhead` as a report: time, space, what is saved, and groups."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from otter_cli.benchmarks.metrics.estimates import Estimate
from otter_cli.benchmarks.overhead.result import (
    MeasuredGroup,
    OverheadResult,
    OverheadRow,
    rounds_text,
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
    named_values,
    number_text,
)


def overhead_report(result: OverheadResult) -> Report:
    """One measurement as a report of its own."""
    s = result.settings
    setting = (
        f"{s.dtype} on {s.device}, {s.threads} threads, batch {s.batch}, {s.context} tokens of "
        f"context; {rounds_text(s)}, base and graft in turns. Ratios are medians over n rounds."
    )
    if result.left_out:
        setting += f" Interrupted, without {', '.join(result.left_out)}."
    if s.stream:
        setting += f" The inserted stream runs by {s.stream}."
    return Report(
        f"Overhead: {s.subject}",
        _answer(result.rows[0]),
        [
            _time_section(result, setting),
            _space_section(result.rows),
            *([_saved_section(result.rows)] if any(row.saved for row in result.rows) else []),
            *map(_group_section, result.groups),
        ],
        list(_facts(result)),
        result.model_dump(mode="json"),
    )


def _answer(row: OverheadRow) -> str:
    """The first row in one sentence."""
    decode, prefill = row.decode_ratio, row.prefill_ratio
    return (
        f"With the graft a decoding step takes {decode.mean:.3f} times the base's time "
        f"({decode.low:.3f} to {decode.high:.3f} within this run), and a prefill "
        f"{prefill.mean:.3f} times ({prefill.low:.3f} to {prefill.high:.3f}), with "
        f"{percent_text(row.parameter_ratio)} of the base's parameters."
    )


_WITHIN_RUN = (
    "Intervals hold 95 % over the rounds of this run, on this machine under its load. They say "
    "nothing about another machine or another day."
)
_TIME_NOTE = (
    "Columns. Of the base: inserted parameters over the base's. Ratio: time with the graft over "
    "the base's, and its interval. Bound: the least ratio possible here. ms: milliseconds of a "
    "pass with the graft. Bound over time: the least time possible over the measured time."
)
_SPACE_NOTE = (
    "Columns. Trainable: parameters that training changes. Stored: the inserted tensors' file. "
    "KV cache a token: memory that each token of the context needs. Peak: the largest memory of a "
    "pass, for the base alone and with the graft."
)
_SAVED_NOTE = (
    "Columns. Time: of a decoding step and of a prefill. Trainable, stored, KV cache: parameters, "
    "bytes on disk, and bytes a token. 100 % is all that a separate reward model adds."
)
_GROUP_NOTE = (
    "Columns. ms: milliseconds. Ratio: time over the reference's, and its interval. Floor: the "
    "least ratio possible by the counted bytes and operations. Passes are counted for each token."
)


def _time_section(result: OverheadResult, setting: str) -> ReportSection:
    rows: list[list[Cell | str]] = []
    points = []
    for row in result.rows:
        for kind, ratio, ms, bound in (
            ("decode", row.decode_ratio, row.decode_ms, row.bound.decode),
            ("prefill", row.prefill_ratio, row.prefill_ms, row.bound.prefill),
        ):
            name = f"{row.name}, {kind}"
            rows.append(
                [
                    name,
                    Cell(percent_text(row.parameter_ratio), "parameters"),
                    ratio_cell(ratio),
                    Cell(f"{bound.ratio:.3f}", f"by {bound.limit}"),
                    Cell(number_text(ms.graft), f"base {number_text(ms.base)}"),
                    Cell(
                        percent_text(bound.reached.graft),
                        f"base {percent_text(bound.reached.base)}",
                    ),
                ]
            )
            points.append(_ratio_point(name, ratio, bound.ratio))
        if (later := row.read_later) is not None:
            name = f"{row.name}, decode, read {later.every} at once"
            cells = [Cell(percent_text(row.parameter_ratio), "parameters"), ratio_cell(later.ratio)]
            rows.append([name, *cells, f"{later.bound:.3f}", "", ""])
            points.append(_ratio_point(name, later.ratio, later.bound))
    head = ["", "of the base", "ratio", "bound", "ms", "bound over time"]
    equal = sum(row.logits_equal for row in result.rows)
    compared = sum(row.logits_compared for row in result.rows)
    rates = result.rates
    bounded = (
        "The bound, a tick in the plot, is the ratio of the least times for the counted bytes and "
        f"operations, at {rates.bytes_per_second / 1e9:.1f} GB/s and "
        f"{rates.flops_per_second / 1e9:.0f} GFLOP/s, the best rates measured in this run. Bound "
        "over time is the share of the bound that was reached."
    )
    text = [
        setting,
        f"Logits equal to the base's bit for bit in {equal} of {compared} passes.",
        bounded,
    ]
    of_first_row = points[: 2 + (result.rows[0].read_later is not None)]
    plots: list[Plot] = [IntervalPlot("Time over the base's", "graft / base", of_first_row, 1.0)]
    plots += _sweep_plots(result.rows[1:]) if len(result.rows) > 1 else []
    return ReportSection(
        "Time", text, [ReportTable(head, rows)], plots, notes=[_TIME_NOTE, _WITHIN_RUN]
    )


def _sweep_plots(rows: Sequence[OverheadRow]) -> list[LinePlot]:
    """Ratios and bounds over the share inserted: one line for each part whose size was varied."""
    plots = []
    for kind in ("decode", "prefill"):
        series = []
        for part in dict.fromkeys(row.name.partition(",")[0] for row in rows):
            own = [row for row in rows if row.name.partition(",")[0] == part]
            shares = [100 * row.parameter_ratio for row in own]
            ratios = [row.decode_ratio if kind == "decode" else row.prefill_ratio for row in own]
            series.append(PlotSeries.of(part, zip(shares, ratios, strict=True)))
            bounds = [getattr(row.bound, kind).ratio for row in own]
            series.append(PlotSeries(f"{part}, bound", shares, bounds))
        title = f"{kind.capitalize()} as the insertion grows"
        plots.append(LinePlot(title, "inserted, % of the base", "time over the base's", series))
    return plots


def _ratio_point(label: str, ratio: Estimate, bound: float | None) -> PlotPoint:
    return PlotPoint(label, ratio.mean, ratio.low, ratio.high, bound)


def ratio_cell(figure: Estimate) -> Cell:
    return Cell(f"{figure.mean:.3f}", f"{figure.low:.3f} to {figure.high:.3f}, n = {figure.n}")


def _space_section(rows: Sequence[OverheadRow]) -> ReportSection:
    body: list[list[Cell | str]] = []
    for row in rows:
        cache, peak = row.cache_bytes_per_token, row.peak_bytes
        stored = row.stored_bytes if row.file_bytes is None else row.file_bytes
        body.append(
            [
                row.name,
                count_text(row.trainable),
                bytes_text(stored),
                Cell(bytes_text(cache.graft), f"base {bytes_text(cache.base)}"),
                bytes_text(peak.base),
                Cell(bytes_text(peak.graft), f"{peak.graft / peak.base:.3f} of base"),
            ]
        )
    head = ["", "trainable", "stored", "KV cache a token", "peak, base", "peak, graft"]
    text = "Peak: the weights, and what a prefill allocates above them."
    return ReportSection("Space", [text], [ReportTable(head, body)], notes=[_SPACE_NOTE])


def _saved_section(rows: Sequence[OverheadRow]) -> ReportSection:
    body: list[list[Cell | str]] = []
    for row in rows:
        if saved := row.saved:
            times = [_share_cell(saved.decode_time), _share_cell(saved.prefill_time)]
            shares = map(percent_text, (saved.trainable, saved.stored, saved.cache))
            body.append([row.name, *times, *shares])
    head = ["", "time, decode", "time, prefill", "trainable", "stored", "KV cache"]
    text = (
        "The share that the insertion saves of what a separate reward model of the base's size "
        "adds, measured in the same rounds (docs/method.md, Costs)."
    )
    table = ReportTable(head, body)
    notes = [_SAVED_NOTE, _WITHIN_RUN]
    return ReportSection("Saved against a separate reward model", [text], [table], notes=notes)


def _share_cell(figure: Estimate) -> Cell:
    return Cell(
        percent_text(figure.mean), f"{percent_text(figure.low)} to {percent_text(figure.high)}"
    )


def _group_section(group: MeasuredGroup) -> ReportSection:
    """A row for each contestant. A column that has no value for any of them is left out."""
    names = list(dict.fromkeys(name for line in group.lines for name in line.figures))
    timed = any(line.ratio for line in group.lines)
    bounded = any(line.floor is not None for line in group.lines)
    head = [
        f"a {group.per}",
        "ms",
        *(["ratio"] * timed),
        *(["floor"] * bounded),
        *(name.removesuffix(", bytes").removesuffix(", share") for name in names),
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
    points = [_ratio_point(line.name, line.ratio, line.floor) for line in group.lines if line.ratio]
    axis = f"time over {group.reference}'s"
    plots: list[Plot] = [IntervalPlot(group.title, axis, points, 1.0)] if timed else []
    if group.x_axis:
        axis = f"time over that of {group.reference}"
        plots = [LinePlot(group.title, group.x_axis, axis, _curves(group), whole_steps=True)]
    notes = [_GROUP_NOTE, *([_WITHIN_RUN] if timed else [])]
    return ReportSection(group.title, group.notes, [ReportTable(head, body)], plots, notes=notes)


def _curves(group: MeasuredGroup) -> list[PlotSeries]:
    """The ratio, its floor, and every figure with an interval over the same reference."""
    lines = [line for line in group.lines if line.x is not None and line.ratio is not None]
    places = [line.x or 0.0 for line in lines]
    ratios = [line.ratio for line in lines if line.ratio is not None]
    series = [PlotSeries.of("whole", zip(places, ratios, strict=True))]
    if floors := [(line.x or 0.0, line.floor) for line in lines if line.floor is not None]:
        series.append(PlotSeries("floor", [x for x, _ in floors], [floor for _, floor in floors]))
    for name in dict.fromkeys(name for line in lines for name in line.figures):
        figures = [(line.x or 0.0, line.figures.get(name)) for line in lines]
        own = [(x, figure) for x, figure in figures if isinstance(figure, Estimate)]
        if own and not name.endswith(", share"):
            series.append(PlotSeries.of(name, own))
    return series


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
    hardware = result.provenance["hardware"]
    yield "machine", f"{result.machine}: {hardware['cpu']}, {hardware['cores']} cores"
    for row in result.rows:
        yield row.name, named_values(row.insertion)
    versions = result.provenance["versions"]
    yield "versions", named_values(versions, ("torch", "transformers", "peft"))
    yield "command", " ".join(["otter", *result.provenance["command"][1:]])
