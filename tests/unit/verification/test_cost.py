"""The counted cost of a verification is equal on every machine, and equals the estimate."""

from __future__ import annotations

from pathlib import Path

import pytest

from otter_cli.verification.agenda import Cost, VerificationRequest, case_size
from otter_cli.verification.case_runner import ModelPair, open_pair, run_case
from otter_cli.verification.grid import Case, Grid
from otter_cli.verification.report import VerificationReport
from otter_cli.verification.run_verification import verify
from tests.support.grafts import random_graft

FORWARDS, TOKENS = 303, 5113
LEVELS = {"logits": 1817, "trace": 832, "poison": 2464, "locality": 0, "bisect": 0}
ONE = Grid(dtypes=("float32",), attentions=("sdpa",))


@pytest.fixture(scope="module")
def graft(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cost") / "graft"
    return random_graft(tiny_llama, folder, hidden=8, heads=2, ffn=16, signals=("reward",))


@pytest.fixture(scope="module")
def report(graft: Path) -> VerificationReport:
    return verify(VerificationRequest(graft, grid=ONE))


def test_a_quick_grid_in_one_setting_costs_what_it_did(report: VerificationReport) -> None:
    """A change of these numbers changes how long every user waits."""
    cost = report.cost.record()
    assert (cost["forwards"], cost["tokens"], cost["longest"]) == (FORWARDS, TOKENS, 128)
    assert cost["levels"] == LEVELS and sum(LEVELS.values()) == TOKENS
    assert cost["multiple"] == pytest.approx(TOKENS / 128, abs=1e-3)


def test_the_base_runs_once_in_every_case_that_is_equal(report: VerificationReport) -> None:
    once = sum(case_size(result.case)[0] for result in report.results)
    warm_up = case_size(report.results[0].case)[0]
    assert report.cost.levels["logits"] == 2 * once + warm_up
    assert report.repeated == 0 and report.control == len(report.results)


def test_a_full_grid_runs_the_base_twice_and_says_so(graft: Path) -> None:
    grid = Grid("full", dtypes=("float32",), attentions=("sdpa",))
    pair = open_pair(
        VerificationRequest(graft, grid=grid), dtype="float32", device="cpu", shared=True
    )
    from otter_cli.verification.compare import CaseResult, compare

    (result,) = compare(pair, [Case("prefill", 7)])
    assert isinstance(result, CaseResult) and result.repeated and result.control


@pytest.mark.parametrize(
    "case",
    [
        case
        for case in Grid("full").cases(64)
        if (case.dtype, case.attention) == ("float32", "sdpa")
    ],
    ids=lambda case: case.label,
)
def test_the_estimate_of_a_case_is_what_is_counted(pair: ModelPair, case: Case) -> None:
    if case.path == "assisted":
        pytest.skip("drafts that are refused are fed again: how many depends on the model")
    cost = Cost()
    with cost.counting([pair.base.model]):
        run_case(case, pair.base)
    assert (cost.tokens, cost.forwards) == case_size(case)


@pytest.fixture(scope="module")
def pair(graft: Path) -> ModelPair:
    return open_pair(VerificationRequest(graft), dtype="float32", device="cpu", shared=True)
