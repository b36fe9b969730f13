"""The verdict from the results of all levels, and which results take precedence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from otter_cli.verification.agenda import VerificationRequest
from otter_cli.verification.bits import LogitsDifference
from otter_cli.verification.case_runner import OutputDigests
from otter_cli.verification.compare import CaseResult, Skipped
from otter_cli.verification.grid import Case
from otter_cli.verification.poison import LocalityResult, PoisonResult
from otter_cli.verification.report import VerificationReport, decide
from otter_cli.verification.static import Finding, StaticResult
from otter_cli.verification.structure import PathTrace
from otter_cli.verification.trace import Leak

CASE = Case("prefill", 7)
DIGESTS = OutputDigests("0", "0")
EXACT = {"exact by construction", "exact on grid"}


def result(*, equal: bool = True, control: bool = True, **difference: Any) -> CaseResult:
    return CaseResult(CASE, equal, control, {"nan": True}, LogitsDifference(**difference), DIGESTS)


def path(leak: Leak | None = None) -> PathTrace:
    return PathTrace(CASE, 10, 5, "0", (), leak)


def report(**found: Any) -> VerificationReport:
    static = StaticResult(files=3, tensors=9, inserted=4)
    return VerificationReport(
        VerificationRequest(Path("graft"), Path("base")),
        **{"static": static, "results": [result()] * 4, "paths": [path()], **found},
    )


def test_all_levels_hold() -> None:
    verdict = decide(report())
    assert verdict.name == "exact by construction"
    assert "3 files and 9 tensors" in verdict.sentence and "all 4 cases" in verdict.sentence


def test_without_a_trace_it_is_exact_on_the_grid_alone() -> None:
    assert decide(report(paths=[], untraced="no graft")).name == "exact on grid"


def test_static_alone_claims_no_more_than_that() -> None:
    found = report(results=[], paths=[])
    found.request = VerificationRequest(Path("graft"), static_only=True)
    assert decide(found).name == "identical on disk"


REFUTED = {
    "a file": {"static": StaticResult(findings=[Finding("is missing", "graft/config.json")])},
    "a leak": {"paths": [path(), path(Leak("aten.add", "layers.1", "reads z"))]},
    "poison": {
        "results": [CaseResult(CASE, True, True, {"nan": False}, LogitsDifference(), DIGESTS)]
    },
    "one tensor": {"poison_each": [PoisonResult(CASE, 3, ("nan",), 2, ("otter.main.norm", "nan"))]},
    "locality": {"locality": [LocalityResult("main", CASE, 3, "the stream moved")]},
    "an error": {
        "results": [CaseResult(CASE, False, True, {}, LogitsDifference(), DIGESTS, "ValueError")]
    },
    "not run": {"unrun": "the file is truncated"},
}


@pytest.mark.parametrize("found", REFUTED.values(), ids=REFUTED)
def test_one_refutation_outweighs_any_number_of_equal_logits(found: dict[str, Any]) -> None:
    verdict = decide(report(**found))
    assert verdict.name == "different"
    assert not any(map(verdict.passes, ("construction", "grid", "close")))


def test_the_first_finding_is_told_and_the_others_are_counted() -> None:
    findings = [Finding("differs", "graft/model.safetensors", f"tensor.{i}") for i in range(3)]
    sentence = decide(report(static=StaticResult(findings=findings))).sentence
    assert sentence == "tensor tensor.0 in graft/model.safetensors differs (and 2 more)."


def test_a_machine_that_does_not_repeat_itself_is_not_blamed_on_the_graft() -> None:
    results = [result(), result(equal=False, control=False, changed=3, compared=9, rows=1)]
    verdict = decide(report(results=results))
    assert verdict.name == "inconclusive" and "in 1 of 2 cases" in verdict.sentence
    poisoned = CaseResult(CASE, False, False, {"nan": False}, LogitsDifference(), DIGESTS)
    assert decide(report(results=[poisoned])).name == "inconclusive"


def test_a_grid_that_cannot_be_run_proves_nothing() -> None:
    verdict = decide(report(results=[], skipped=[Skipped(CASE, "ValueError: no sdpa")]))
    assert verdict.name == "inconclusive" and "no sdpa" in verdict.sentence


@pytest.mark.parametrize(
    ("difference", "name"),
    [
        ({"kl": 1e-6}, "close"),
        ({"kl": 0.1}, "different"),
        ({"kl": 0.0, "not_finite": 1}, "different"),
        ({"shapes": ([1, 2], [1, 3])}, "different"),
    ],
)
def test_rounding_is_close_and_more_is_different(difference: dict[str, Any], name: str) -> None:
    moved = result(equal=False, changed=3, compared=90, rows=10, argmaxes=1, **difference)
    verdict = decide(report(results=[result(), moved]))
    assert verdict.name == name
    assert "1 of 2 cases differ" in verdict.sentence and "3 of 90 logits" in verdict.sentence


def test_what_exits_0_depends_on_how_strict_one_is() -> None:
    by_construction, on_grid = decide(report()), decide(report(paths=[], untraced="no graft"))
    close = decide(report(results=[result(equal=False, kl=1e-9)]))
    assert [by_construction.passes(s) for s in ("construction", "grid", "close")] == [True] * 3
    assert [on_grid.passes(s) for s in ("construction", "grid", "close")] == [False, True, True]
    assert [close.passes(s) for s in ("construction", "grid", "close")] == [False, False, True]
