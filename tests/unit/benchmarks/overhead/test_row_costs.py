"""The curve of rows: each part is the step that its name says, and the counts are exact."""

from typing import Any

import numpy as np
import pytest
import torch

from otter_cli.benchmarks.overhead.measured_models import OverheadRun, from_shape, parse_signals
from otter_cli.benchmarks.overhead.measuring import MachineRates
from otter_cli.benchmarks.overhead.result import OverheadSettings
from otter_cli.benchmarks.overhead.row_costs import (
    KINDS,
    ROW_COUNTS,
    RowKind,
    RowSteps,
    _group,
    row_cost_groups,
)
from otter_cli.reports.overhead import _group_section
from otter_cli.reports.page import LinePlot

CONTEXT = 16


@pytest.fixture(scope="module")
def run() -> OverheadRun:
    sizes: dict[str, Any] = {"hidden": 8, "heads": 2, "ffn": 16}
    signals = parse_signals(["reward", "future:2,plain"])
    models = from_shape("tiny", {**sizes, "signals": signals}, dtype=torch.float32, device="cpu")
    settings = OverheadSettings(
        subject="tiny",
        dtype="float32",
        device="cpu",
        threads=1,
        batch=1,
        context=CONTEXT,
        repeats=6,
    )
    return OverheadRun(models, settings, MachineRates(bytes_per_second=1e9, flops_per_second=1e12))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rows", [1, 2, 5])
def test_the_body_and_the_session_compute_the_same_states(
    run: OverheadRun, kind: RowKind, rows: int
) -> None:
    """In every round again: a reset leaves the context alone in both caches."""
    steps = RowSteps(run, kind, rows)
    with torch.no_grad():
        (base, reset_base), (body, reset_body) = steps.of_the_base(), steps.of_the_body()
        first = None
        for _ in range(3):
            session, decoder = base().base, body().last_hidden_state
            torch.testing.assert_close(session, decoder, rtol=1e-5, atol=1e-6)
            first = session if first is None else first
            assert torch.equal(session, first)
            reset_base()
            reset_body()
    assert session.shape[:2] == ((rows, 1) if kind == "batch" else (1, rows))


@pytest.mark.parametrize("rows", [1, 2, 5])
def test_candidates_see_neither_each_other_nor_another_position(
    run: OverheadRun, rows: int
) -> None:
    """Their states are those of texts of a batch that end in one candidate each."""
    states = []
    with torch.no_grad():
        for kind in ("candidates", "batch"):
            step, _ = RowSteps(run, kind, rows).of_the_base()
            states.append(step().base.flatten(0, 1))
    torch.testing.assert_close(*states, rtol=1e-5, atol=1e-6)


def test_counts_say_what_a_row_reads(run: OverheadRun) -> None:
    shape, plan = run.models.shape, run.models.plans[0]
    inserted = len(plan.config.layers) * plan.config.kv_heads
    entry = 2 * 4 * shape.head_dim * (shape.layers * shape.kv_heads + inserted)
    with torch.no_grad():
        for rows in (1, 4, 8):
            candidates, draft, batch = (RowSteps(run, kind, rows).counted() for kind in KINDS)
            assert candidates.vocabulary_rows == 1
            assert draft.vocabulary_rows == batch.vocabulary_rows == rows
            # The last candidate is kept: its entry moves to the first free slot.
            assert candidates.copied_bytes == (entry if rows > 1 else 0)
            assert draft.copied_bytes == 0


def test_counted_work_is_that_of_the_rows(run: OverheadRun) -> None:
    shape, weights = run.models.shape, run.models.layer_weights
    head = shape.vocab * shape.hidden
    works = {kind: RowSteps(run, kind, 4).work(inserted=False) for kind in KINDS}
    # Four rows through the layers, and one or four through the product over the vocabulary.
    attended = 4 * shape.layers * shape.heads * shape.head_dim
    chain = attended * sum(CONTEXT + n for n in (1, 2, 3, 4))
    assert works["candidates"].flops == 2 * (4 * weights + head) + chain
    assert works["draft"].flops == 2 * (4 * weights + 4 * head) + chain
    assert works["batch"].flops == 2 * (4 * weights + 4 * head) + attended * 4 * (CONTEXT + 1)
    assert works["draft"].bytes == works["candidates"].bytes < works["batch"].bytes
    whole = RowSteps(run, "draft", 4).work(inserted=True)
    assert whole.bytes > works["draft"].bytes and whole.flops > works["draft"].flops


def test_the_parts_of_a_line_add_up(run: OverheadRun) -> None:
    times = {}
    for kind in KINDS:
        for rows in ROW_COUNTS:
            times[f"head {rows}"] = np.full(5, 0.1 + 0.01 * rows)
            times[f"body {kind} {rows}"] = np.full(5, 0.8 + 0.02 * rows)
            times[f"base {kind} {rows}"] = np.full(5, 0.87 + 0.02 * rows)
            times[f"whole {kind} {rows}"] = np.full(5, 1.1 + 0.04 * rows)
    steps = {rows: RowSteps(run, "draft", rows) for rows in ROW_COUNTS}
    with torch.no_grad():
        group = _group("draft", steps, times)
    reference, *lines = group.lines
    assert (reference.name, reference.x) == (group.reference, None)
    assert reference.milliseconds == pytest.approx(1000)
    assert [line.x for line in lines] == list(ROW_COUNTS)
    eight: Any = lines[ROW_COUNTS.index(8)]
    parts = ("body", "product over the vocabulary", "session", "insertion")
    assert sum(eight.figures[part].mean for part in parts) == pytest.approx(eight.ratio.mean)
    assert eight.figures["a row more, share"].mean == pytest.approx(0.03)
    assert "a row more, share" not in lines[0].figures
    assert eight.floor > lines[0].floor > 1


def test_the_groups_are_stored_and_drawn_as_curves(run: OverheadRun) -> None:
    groups = row_cost_groups(run)
    assert [group.title for group in groups] == list(KINDS.values())
    for group in groups:
        stored = type(group).model_validate_json(group.model_dump_json())
        section = _group_section(stored)
        (plot,) = section.plots
        assert isinstance(plot, LinePlot) and plot.whole_steps and plot.x_axis == "rows"
        curves = {series.label: series for series in plot.series}
        assert curves.keys() >= {"whole", "floor", "body", "attention", "insertion", "session"}
        assert all(list(series.x) == list(ROW_COUNTS) for series in curves.values())
        assert len(section.tables[0].rows) == 1 + len(ROW_COUNTS)
