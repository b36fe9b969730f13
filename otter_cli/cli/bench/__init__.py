"""`otter bench`: compares methods on the same prompts, in a run folder that resumes."""

# Importing a verb registers it on the app.
from otter_cli.cli.bench import (  # noqa: F401
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

__all__ = ["app"]
