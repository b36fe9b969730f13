"""proof.json: what was compared, with what outcome, and how to run it again elsewhere.

The last entry is the digest of all others, so a changed proof is noticed.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel, TypeAdapter, ValidationError

from otter_cli.core.digests import sha256_json
from otter_cli.core.errors import CheckFailed, OtterError
from otter_cli.core.provenance import provenance
from otter_cli.core.strict_files import quoted, read_json_object
from otter_cli.verification.agenda import VerificationRequest, WorkSelection, case_name
from otter_cli.verification.report import Verdict, VerificationReport

SCHEMA_VERSION = 2
# The most random cases that a proof from elsewhere may have this machine run.
_MOST_RANDOM_CASES = 100_000
_ANEW_HINT = "ask for the original, or verify again"
_ENVIRONMENT = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "CUBLAS_WORKSPACE_CONFIG",
    "ATEN_CPU_CAPABILITY",
)


class _Result(BaseModel):
    case: dict[str, Any]
    outputs: Any


class _Digests(BaseModel):
    digests: dict[str, dict[str, str]]


class _Proof(BaseModel):
    """The entries that a second run is compared with."""

    verdict: str
    request: VerificationRequest
    static: _Digests
    cases: Any
    equal: Any
    control: Any
    poison: Any
    results: list[_Result]


def proof_record(report: VerificationReport, verdict: Verdict) -> dict[str, Any]:
    """The whole of proof.json."""
    record = {
        "schema_version": SCHEMA_VERSION,
        "verdict": verdict.name,
        "sentence": verdict.sentence,
        "request": _request(report).record(),
        **report.record(),
        "provenance": provenance(),
        "backend": {} if report.request.static_only else backend(),
    }
    return {**record, "sha256": sha256_json(record)}


def _request(report: VerificationReport) -> VerificationRequest:
    """The request, with the work that was done if that is not the whole grid."""
    if report.left_out is None:
        return report.request
    done = WorkSelection(
        cases=tuple(map(case_name, report.compared)),
        traces=tuple(case_name(path.case) for path in report.paths),
        poisoned=tuple(case_name(result.case) for result in report.results if result.poison),
        each=bool(report.poison_each),
        locality=bool(report.locality),
    )
    return replace(report.request, only=done)


def backend() -> dict[str, Any]:
    """Threads, flags and libraries that decide which kernels run."""
    import torch

    return {
        "threads": torch.get_num_threads(),
        "interop_threads": torch.get_num_interop_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "mkldnn": torch.backends.mkldnn.is_available() and torch.backends.mkldnn.enabled,
        "mkl": torch.backends.mkl.is_available(),
        "matmul_precision": torch.get_float32_matmul_precision(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "cuda": torch.version.cuda,
        "cudnn_benchmark": torch.backends.cudnn.benchmark,
        "sdp": {
            "flash": torch.backends.cuda.flash_sdp_enabled(),
            "memory_efficient": torch.backends.cuda.mem_efficient_sdp_enabled(),
            "math": torch.backends.cuda.math_sdp_enabled(),
        },
        "environment": {key: os.environ[key] for key in _ENVIRONMENT if key in os.environ},
    }


def read_proof(path: Path) -> dict[str, Any]:
    """Reads a proof. Raises OtterError for a file that is no proof, CheckFailed for a proof that
    was changed after it was written."""
    record = read_json_object(path)
    version = record.get("schema_version")
    if "verdict" not in record or not isinstance(version, int):
        raise OtterError(f"{path} is no proof", hint="`otter verify OUT --base BASE` writes one")
    if version != SCHEMA_VERSION:
        hint = "update otter" if version > SCHEMA_VERSION else "verify again"
        raise OtterError(f"{path} has schema version {version}, not {SCHEMA_VERSION}", hint=hint)
    content = {key: value for key, value in record.items() if key != "sha256"}
    if sha256_json(content) != record.get("sha256"):
        raise CheckFailed(
            f"{path} was changed after it was written: its digest differs", hint=_ANEW_HINT
        )
    try:
        _Proof.model_validate(record)
    # A digest is no signature: anybody can write a proof whose digest fits.
    except OtterError as error:
        what = f"{path} asks for what cannot be run: {error.what}"
        raise OtterError(what, hint=error.hint) from error
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise OtterError(
            f"{path} is no proof that otter wrote: {quoted(place)}: {first['msg']}",
            hint=_ANEW_HINT,
        ) from error
    return record


def request_of(record: dict[str, Any]) -> VerificationRequest:
    """The request that the proof was made from. Raises OtterError for too many random cases."""
    request = TypeAdapter(VerificationRequest).validate_python(record["request"])
    if "main" not in record["request"]["grid"]:
        # An older proof, of a time when a quick grid ran whole in every setting.
        request = replace(request, grid=replace(request.grid, main=()))
    if not 0 <= request.grid.random <= _MOST_RANDOM_CASES:
        raise OtterError(
            f"the proof asks for {request.grid.random:,} random cases",
            hint=f"at most {_MOST_RANDOM_CASES:,} are run for a proof",
        )
    return request


def disagreements(proof: dict[str, Any], again: dict[str, Any]) -> Iterator[str]:
    """What differs in a second run, in words: files, verdict, counts of cases."""
    for side, files in proof["static"]["digests"].items():
        for file, digest in files.items():
            if again["static"]["digests"].get(side, {}).get(file) != digest:
                yield f"{file} of the {side} is not the file that was verified"
    if proof["verdict"] != again["verdict"]:
        yield f"the verdict was {proof['verdict']}, and is {again['verdict']}"
    for count in ("cases", "equal", "control", "poison"):
        if proof[count] != again[count]:
            yield f"{count}: {proof[count]} then, {again[count]} now"


def same_outputs(proof: dict[str, Any], again: dict[str, Any]) -> int:
    """The number of cases with the same bits as where the proof was made."""
    # By case, because this machine may be unable to run some of them.
    then = {sha256_json(result["case"]): result["outputs"] for result in proof["results"]}
    now = {sha256_json(result["case"]): result["outputs"] for result in again["results"]}
    return sum(then[case] == now[case] for case in then.keys() & now.keys())
