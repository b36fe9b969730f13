"""`otter bench`: methods compared on the same prompts, in a run folder that resumes."""

from otter_cli.cli.bench import detox, preference, report, speedup
from otter_cli.cli.bench.app import app

__all__ = ["app", "detox", "preference", "report", "speedup"]
