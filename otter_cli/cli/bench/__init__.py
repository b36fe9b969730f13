"""`otter bench`: compares methods on the same prompts, in a run folder that resumes."""

from otter_cli.cli.bench import (
    check,
    compare,
    detection,
    detox,
    lm_eval,
    matrix,
    overhead,
    preference,
    report,
    rescore,
    speedup,
)
from otter_cli.cli.bench.group import app

__all__ = [
    "app",
    "check",
    "compare",
    "detection",
    "detox",
    "lm_eval",
    "matrix",
    "overhead",
    "preference",
    "report",
    "rescore",
    "speedup",
]
