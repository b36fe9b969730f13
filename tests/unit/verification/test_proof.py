"""proof.json: a damaged one is refused, and a second run is compared with it."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from otter_cli.core.digests import sha256_json
from otter_cli.core.errors import CheckFailed, OtterError
from otter_cli.verification.agenda import VerificationRequest
from otter_cli.verification.bits import LogitsDifference
from otter_cli.verification.case_runner import OutputDigests
from otter_cli.verification.compare import CaseResult
from otter_cli.verification.grid import Case, Grid
from otter_cli.verification.proof import (
    SCHEMA_VERSION,
    disagreements,
    proof_record,
    read_proof,
    request_of,
    same_outputs,
)
from otter_cli.verification.report import VerificationReport, decide
from otter_cli.verification.static import StaticResult

REQUEST = VerificationRequest(
    Path("graft"), Path("base"), Grid("full", 7, 3, ("float32",)), independent=True, trust=True
)


def record(outputs: str = "abc", digest: str = "1", equal: bool = True) -> dict[str, Any]:
    static = StaticResult(1, 2, 3, digests={"folder": {"config.json": digest}})
    case, digests = Case("prefill", 7), OutputDigests(outputs, "cache")
    results = [CaseResult(case, equal, True, {"nan": True}, LogitsDifference(), digests)]
    report = VerificationReport(REQUEST, static, "no graft", results=results)
    return proof_record(report, decide(report))


def test_a_proof_says_on_what_and_with_what_it_was_made(tmp_path: Path) -> None:
    proof = record()
    assert proof["schema_version"] == SCHEMA_VERSION and proof["verdict"] == "exact on grid"
    assert (proof["cases"], proof["equal"], proof["control"], proof["poison"]) == (1, 1, 1, 1)
    assert proof["provenance"]["versions"]["torch"] and proof["provenance"]["hardware"]["cpu"]
    assert proof["backend"]["threads"] >= 1 and "cpu_capability" in proof["backend"]
    assert proof["static"]["digests"]["folder"] == {"config.json": "1"}
    assert proof["sha256"] == sha256_json({k: v for k, v in proof.items() if k != "sha256"})


def test_it_survives_the_disk_and_gives_its_request_back(tmp_path: Path) -> None:
    path = tmp_path / "proof.json"
    path.write_text(json.dumps(record(), indent=2))
    assert request_of(read_proof(path)) == REQUEST


def test_a_request_without_a_base_stays_one(tmp_path: Path) -> None:
    report = VerificationReport(
        VerificationRequest(Path("graft"), static_only=True), StaticResult()
    )
    proof = json.loads(json.dumps(proof_record(report, decide(report))))
    assert request_of(proof) == report.request and proof["backend"] == {}


def test_any_change_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "proof.json"
    changed = {**record(equal=False), "verdict": "exact by construction"}
    path.write_text(json.dumps(changed))
    with pytest.raises(CheckFailed, match="changed after it was written"):
        read_proof(path)


@pytest.mark.parametrize("content", ["{}", '{"verdict": "close"}', "[]", "no"])
def test_what_is_no_proof_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "proof.json"
    path.write_text(content)
    with pytest.raises(OtterError) as refused:
        read_proof(path)
    assert refused.value.exit_code == 2


@pytest.mark.parametrize(("version", "hint"), [(SCHEMA_VERSION + 1, "update"), (1, "verify again")])
def test_another_schema_is_refused(tmp_path: Path, version: int, hint: str) -> None:
    later = {**record(), "schema_version": version}
    later["sha256"] = sha256_json({k: v for k, v in later.items() if k != "sha256"})
    path = tmp_path / "proof.json"
    path.write_text(json.dumps(later))
    with pytest.raises(OtterError, match=f"schema version {version}") as refused:
        read_proof(path)
    assert hint in (refused.value.hint or "")


def test_the_same_again_disagrees_in_nothing() -> None:
    assert not list(disagreements(record(), record()))
    assert same_outputs(record(), record()) == 1


def test_other_bits_of_the_base_are_another_machine_not_a_disagreement() -> None:
    assert not list(disagreements(record("abc"), record("def")))
    assert same_outputs(record("abc"), record("def")) == 0


def test_a_case_that_one_machine_skips_leaves_the_others_their_partners() -> None:
    both, rest = record(), record()
    skipped = {"case": asdict(Case("prefill", 9)), "outputs": {"said": "x", "cache": "y"}}
    both["results"] = [skipped, *both["results"]]
    assert same_outputs(both, rest) == same_outputs(rest, both) == 1


def test_other_files_and_other_outcomes_are_told() -> None:
    assert list(disagreements(record(), record(digest="2"))) == [
        "config.json of the folder is not the file that was verified"
    ]
    told = list(disagreements(record(), record(equal=False)))
    assert told == ["the verdict was exact on grid, and is close", "equal: 1 then, 0 now"]
