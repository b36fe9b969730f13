"""The proof that a graft gives its base's logits, bit for bit. Importing this imports no torch.

The levels, in order: static, structure (with trace), compare (over a grid), poison, and bisect
where something differs. docs/method.md, "Exactness: what verify proves", says what each shows.
"""

from otter_cli.verification.agenda import VerificationRequest
from otter_cli.verification.grid import Grid
from otter_cli.verification.proof import (
    disagreements,
    proof_record,
    read_proof,
    request_of,
    same_outputs,
)
from otter_cli.verification.report import Strictness, Verdict, VerificationReport, decide
from otter_cli.verification.run_verification import verify

__all__ = [
    "Grid",
    "Strictness",
    "Verdict",
    "VerificationReport",
    "VerificationRequest",
    "decide",
    "disagreements",
    "proof_record",
    "read_proof",
    "request_of",
    "same_outputs",
    "verify",
]
