"""What an insertion costs, as sections of a report."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from otter_cli.benchmarks.estimates import Estimate
from otter_cli.benchmarks.overhead.result import Bound, OverheadResult, Pair, Row
from otter_cli.core.units import bytes_text, count_text, percent_text
from otter_cli.reports.figures import number_text
from otter_cli.reports.page import Cell, Report, Section, Table
from otter_cli.reports.plots import IntervalPlot, Point


def overhead_report(result: OverheadResult) -> Report:
    """One measurement as a report of its own."""
    s = result.settings
    lead = (
        f"{s.dtype} on {s.device}, {s.threads} threads, batch {s.batch}, {s.context} tokens of "
        f"context; {s.repeats} rounds, base and graft in turns. Ratios are medians over rounds."
    )
    return Report(
        f"Overhead: {s.subject}",
        lead,
        list(_sections(result)),
        list(_facts(result)),
        result.model_dump(mode="json"),
    )


def _sections(result: OverheadResult) -> Iterator[Section]:
    yield _time(result)
    yield _space(result.rows)
    if any(row.saved for row in result.rows):
        yield _saved(result.rows)


def _time(result: OverheadResult) -> Section:
    rows: list[list[Cell | str]] = []
    for row in result.rows:
        for kind, ratio, ms, bound in (
            ("decode", row.decode_ratio, row.decode_ms, row.bound.decode),
            ("prefill", row.prefill_ratio, row.prefill_ms, row.bound.prefill),
        ):
            rows.append([f"{row.name}, {kind}", *_figures(row, ratio, ms, bound)])
    head = ["n = rounds", "of the base", "ratio", "bound", "base, ms", "graft, ms", "share reached"]
    equal = sum(row.logits_equal for row in result.rows)
    compared = sum(row.logits_compared for row in result.rows)
    rates = result.rates
    text = [
        f"Logits equal to the base's bit for bit in {equal} of {compared} passes.",
        (
            "The bound is the ratio of the least times for the bytes and operations counted, at "
            f"{rates.bytes_per_second / 1e9:.1f} GB/s and "
            f"{rates.flops_per_second / 1e9:.0f} GFLOP/s, "
            "the best measured in this run. Share reached: that least time over the time taken, by "
            "base and graft."
        ),
    ]
    points = [
        Point(str(line[0]), ratio.mean, ratio.low, ratio.high)
        for line, ratio in zip(
            rows, [r for row in result.rows for r in (row.decode_ratio, row.prefill_ratio)],
            strict=True,
        )
    ]  # fmt: skip
    plot = IntervalPlot("Time over the base's", "graft / base", points, 1.0)
    return Section("Time", text, [Table(head, rows)], [plot])


def _figures(row: Row, ratio: Estimate, ms: Pair, bound: Bound) -> list[Cell | str]:
    return [
        Cell(percent_text(row.parameter_ratio), "parameters"),
        ratio_cell(ratio),
        Cell(f"{bound.ratio:.3f}", f"by {bound.limit}"),
        number_text(ms.base),
        number_text(ms.graft),
        Cell(
            f"{percent_text(bound.reached.base)}, {percent_text(bound.reached.graft)}",
            "base, graft",
        ),
    ]


def ratio_cell(figure: Estimate) -> Cell:
    return Cell(f"{figure.mean:.3f}", f"{figure.low:.3f} to {figure.high:.3f}, n = {figure.n}")


def _space(rows: Sequence[Row]) -> Section:
    table = Table(
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
    return Section("Space", text, [table])


def _saved(rows: Sequence[Row]) -> Section:
    body: list[list[Cell | str]] = []
    for row in rows:
        if row.saved:
            times = [row.saved.decode_time, row.saved.prefill_time]
            body.append(
                [
                    row.name,
                    *(_share(figure) for figure in times),
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
    return Section("Saved against a separate reward model", [text], [Table(head, body)])


def _share(figure: Estimate) -> Cell:
    return Cell(
        percent_text(figure.mean), f"{percent_text(figure.low)} to {percent_text(figure.high)}"
    )


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
