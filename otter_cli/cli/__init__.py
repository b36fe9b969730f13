"""The command line: one thin file per verb, imported when that verb is called."""

from otter_cli.cli.main import main

__all__ = ["main"]
