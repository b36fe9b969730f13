"""The command line: one thin file per verb, imported when it is asked for."""

from otter_cli.cli.main import main

__all__ = ["main"]
