"""The proof that a graft says what its base says, to the bit. Importing this imports no torch."""

from otter_cli.verification.grid import Grid
from otter_cli.verification.proof import (
    disagreements,
    proof_record,
    read_proof,
    request_of,
    same_outputs,
)
from otter_cli.verification.report import Report
from otter_cli.verification.request import Request
from otter_cli.verification.verdict import Strictness, Verdict, decide
from otter_cli.verification.verify import verify

__all__ = [
    "Grid",
    "Report",
    "Request",
    "Strictness",
    "Verdict",
    "decide",
    "disagreements",
    "proof_record",
    "read_proof",
    "request_of",
    "same_outputs",
    "verify",
]
