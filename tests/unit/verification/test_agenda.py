"""A budget and Ctrl-C: the most valuable work comes first, the rest is reported, and a proof of it
holds when it is run again."""

from __future__ import annotations

import json
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from otter_cli.core.errors import OtterError
from otter_cli.core.formatting import parse_seconds
from otter_cli.verification import compare as compared
from otter_cli.verification.agenda import (
    Agenda,
    VerificationRequest,
    WorkSelection,
    by_priority,
    case_name,
    estimated_tokens,
    fit_budget,
)
from otter_cli.verification.grid import Case, Grid
from otter_cli.verification.proof import disagreements, proof_record, request_of
from otter_cli.verification.report import VerificationReport, decide
from otter_cli.verification.run_verification import verify
from otter_cli.verification.structure import traced_cases
from tests.conftest import Otter
from tests.support.grafts import random_graft

GRID = Grid(main=("bfloat16", "sdpa"))
CASES = GRID.cases(512)
AGENDA = Agenda(tuple(CASES), tuple(traced_cases(CASES, 512, GRID)))


def departures(case: Case) -> int:
    return GRID.departures(case.dtype, case.attention)


@pytest.fixture(scope="module")
def graft(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("selection") / "graft"
    return random_graft(tiny_llama, folder, hidden=8, heads=2, ffn=16, signals=("reward",))


def test_a_quick_grid_runs_whole_in_the_setting_that_is_served() -> None:
    count = {
        setting: sum((case.dtype, case.attention) == setting for case in CASES)
        for setting in {(case.dtype, case.attention) for case in CASES}
    }
    assert count == {
        ("bfloat16", "sdpa"): 15,
        ("bfloat16", "eager"): 6,
        ("float32", "sdpa"): 6,
        ("float32", "eager"): 2,
    }
    assert CASES[0].dtype == "bfloat16"
    # The longest window once; every other setting has padded steps over a cache.
    assert [case.setting for case in CASES if case.length == 512] == ["bfloat16, sdpa"]
    padded = {c.setting for c in CASES if (c.padding, c.path) == ("left", "decode")}
    assert len(padded) == 4


def test_dtypes_that_a_user_names_are_all_run_whole() -> None:
    grid = Grid(dtypes=("float16", "float32")).around("bfloat16", "sdpa")
    cases = [case for case in grid.cases(512) if case.attention == "sdpa"]
    assert len(cases) == 30 and {case.dtype for case in cases} == {"float16", "float32"}


def test_a_base_that_runs_with_eager_attention_is_run_whole_in_it() -> None:
    cases = Grid().around("float32", "eager").cases(512)
    whole = [case for case in cases if (case.dtype, case.attention) == ("float32", "eager")]
    assert len(whole) == 15


def test_a_full_grid_is_the_same_in_every_setting() -> None:
    assert Grid("full").around("bfloat16", "sdpa") == Grid("full")


def test_the_first_of_the_work_are_a_trace_and_one_case_of_every_kind() -> None:
    order = list(by_priority(AGENDA, departures))
    assert len(order) == len(AGENDA.cases) + len(AGENDA.traces)
    assert order[0] == ("trace", AGENDA.traces[[departures(c) for c in AGENDA.traces].index(0)])
    main = [case for level, case in order if level == "case" and not departures(case)]
    kinds = {case.kind for case in main}
    assert {case.kind for case in main[: len(kinds)]} == kinds


@pytest.mark.parametrize("seconds", [2.0, 5.0, 9.0])
def test_a_budget_buys_more_kinds_than_the_grid_s_own_order(seconds: float) -> None:
    chosen = fit_budget(AGENDA, seconds, rate=1e-3, load=1.0, departures=departures)
    main = [case for case in AGENDA.cases if not departures(case)]
    spent, in_order = 0.0, set()
    for case in main:
        spent += 4e-3 * estimated_tokens(case)
        if spent <= seconds:
            in_order.add(case.kind)
    kinds = {case.kind for case in chosen.cases if not departures(case)}
    assert len(kinds) > len(in_order) and chosen.traces
    more = fit_budget(AGENDA, seconds + 30, rate=1e-3, load=1.0, departures=departures)
    assert set(more.cases) > set(chosen.cases)


def test_no_time_at_all_leaves_a_trace_and_a_case() -> None:
    chosen = fit_budget(AGENDA, 0.0, rate=1e-3, load=1.0, departures=departures)
    assert len(chosen.cases) == len(chosen.traces) == 1 and not departures(chosen.cases[0])


def test_a_large_budget_leaves_nothing_out() -> None:
    assert fit_budget(AGENDA, 1e6, rate=1e-3, load=1.0, departures=departures) == AGENDA


def test_a_selection_takes_from_the_grid_and_adds_nothing() -> None:
    foreign = case_name(Case("prefill", 10**9))
    chosen = AGENDA.only(WorkSelection((case_name(CASES[3]), foreign), (foreign,), (foreign,)))
    assert chosen.cases == (CASES[3],) and chosen.traces == ()


@pytest.mark.parametrize(("text", "seconds"), [("30s", 30), ("2m", 120), ("1h", 3600), ("45", 45)])
def test_durations(text: str, seconds: float) -> None:
    assert parse_seconds(text) == seconds


@pytest.mark.parametrize("text", ["", "0s", "soon", "-3s", "1e3", "30 days", "9" * 400])
def test_no_durations(text: str) -> None:
    with pytest.raises(OtterError, match="no duration"):
        parse_seconds(text)


def interrupt_at(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Sends Ctrl-C during the run with this number."""
    run, count = compared.run_case, iter(range(1, 10_000))

    def counted(case: Case, subject: Any) -> Any:
        if next(count) == number:
            signal.raise_signal(signal.SIGINT)
        return run(case, subject)

    monkeypatch.setattr(compared, "run_case", counted)


ONE = Grid(dtypes=("float32",), attentions=("sdpa",))


def again(report: VerificationReport) -> list[str]:
    """What differs when the report's proof is run again."""
    proof = json.loads(json.dumps(proof_record(report, decide(report))))
    second = verify(request_of(proof))
    return list(disagreements(proof, proof_record(second, decide(second))))


# 4 is one of the first cases. 40 is a case with poison, after all comparisons and traces.
@pytest.mark.parametrize("number", [4, 40])
def test_ctrl_c_gives_the_verdict_of_what_was_done(
    graft: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    interrupt_at(monkeypatch, number)
    report = verify(VerificationRequest(graft, grid=ONE), interruptible=True)
    verdict = decide(report)
    left = report.left_out
    assert left is not None and left.why == "interrupted" and left.poison
    assert len(report.results) + len(left.cases) == len(report.request.grid.cases(128))
    assert bool(left.cases) == (number == 4)
    name_ = "exact on grid" if number == 4 else "exact by construction"
    assert verdict.name == name_ and "left out" in verdict.sentence
    monkeypatch.undo()
    assert not again(report)


def test_ctrl_c_of_the_command(
    otter_here: Otter, graft: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    interrupt_at(monkeypatch, 6)
    ran = otter_here("verify", graft, "--dtype", "float32", "--json")
    out = json.loads(ran.stdout)
    assert ran.returncode == 130 and out["partial"] and out["left_out"]["why"] == "interrupted"
    assert out["verdict"] == "exact on grid" and 0 < out["cases"] < 6
    assert json.loads((tmp_path / "proof.json").read_text())["request"]["only"]["cases"]


def test_ctrl_c_before_the_first_case_claims_nothing(
    graft: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupt_at(monkeypatch, 1)  # the warm-up
    verdict = decide(verify(VerificationRequest(graft, grid=ONE), interruptible=True))
    assert verdict.name == "inconclusive" and "before any case" in verdict.sentence


def test_a_budget_that_is_spent_at_once_still_gives_a_verdict_or_says_why(graft: Path) -> None:
    verdict = decide(verify(VerificationRequest(graft, grid=ONE, budget=1e-3)))
    assert verdict.name == "inconclusive" and "the budget is spent" in verdict.sentence


def test_a_budget_reports_the_rest_and_its_proof_holds(
    graft: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from otter_cli.verification import levels

    # About ten cases fit at this rate. A test must not depend on the machine's speed.
    monkeypatch.setattr(
        levels,
        "fit_budget",
        lambda agenda, seconds, rate, load, away: fit_budget(agenda, 12.0, 1e-3, load, away),
    )
    report = verify(VerificationRequest(graft, grid=ONE, budget=600.0))
    left, verdict = report.left_out, decide(report)
    assert left is not None and left.why == "the budget is spent"
    assert report.results and report.paths and left.cases
    done = {case_name(case) for case in report.compared}
    assert not done & set(left.cases) and len(done) + len(left.cases) == 15
    assert "left out" in verdict.sentence and f"of {15} cases" in verdict.sentence
    assert not again(report)


def test_a_proof_of_before_is_run_in_every_setting(graft: Path) -> None:
    proof = json.loads(
        json.dumps(proof_record(r := verify(VerificationRequest(graft, grid=ONE)), decide(r)))
    )
    del proof["request"]["grid"]["main"], proof["request"]["only"], proof["request"]["budget"]
    request = request_of(proof)
    assert request.grid.main == () and request == replace(
        VerificationRequest(graft), grid=replace(ONE, main=())
    )
    both = replace(request.grid, dtypes=(), attentions=("eager", "sdpa")).cases(512)
    assert both == Grid().cases(512) and len(both) == 60
