"""The entry point of `otter`: runs one verb and returns the exit code.

Every exception becomes an `error:` line, a `hint:` line and an exit code. --debug adds the
traceback. Warnings and log records of libraries are escaped before they reach the terminal.
"""

import io
import logging
import os
import sys
import traceback
import warnings
from collections.abc import Sequence
from typing import Any

import typer

from otter_cli.core.errors import OtterError
from otter_cli.core.formatting import terminal_text
from otter_cli.core.threads import note_start

_INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Runs `otter` with these arguments (default: those of the process); returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    note_start()
    _escape_library_output()
    if not debug:
        _quiet_libraries()
    try:
        code = _run_command(arguments or ["--help"])
    except KeyboardInterrupt:
        code = _INTERRUPTED
    except Exception as error:  # noqa: BLE001 - the last resort: reported, never swallowed
        if debug:
            typer.echo(terminal_text(traceback.format_exc()), err=True, nl=False)
        return _print_error(_to_otter_error(error))
    if code == _INTERRUPTED:
        typer.echo("interrupted", err=True)
    return code


def _run_command(arguments: list[str]) -> int:
    from typer.main import get_command

    from otter_cli.cli.verbs import app

    return int(get_command(app).main(arguments, prog_name="otter", standalone_mode=False) or 0)


def _escape_library_output() -> None:
    """Escapes warnings and log records, since they quote file names and values.

    A character that the terminal's encoding lacks becomes an escape instead of an error.
    """
    logging.setLogRecordFactory(_EscapedRecord)
    if warnings.formatwarning is not _escaped_warning:
        warnings.formatwarning = _escaped_warning
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


class _EscapedRecord(logging.LogRecord):
    def getMessage(self) -> str:
        return terminal_text(super().getMessage())


def _escaped_warning(
    message: Warning | str, category: type[Warning], *where: Any, **more: Any
) -> str:
    return terminal_text(_format_warning(message, category, *where, **more))


_format_warning = warnings.formatwarning


def _quiet_libraries() -> None:
    """Switches off progress bars and advice of libraries. Our own code checks what matters."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # transformers imports torchao where it is installed, and both log while they load.
    for name in ("torchao", "torch.utils._pytree"):
        logging.getLogger(name).setLevel(logging.ERROR)


def _print_error(error: OtterError) -> int:
    typer.echo(
        f"{typer.style('error:', fg='red', bold=True)} {terminal_text(error.what)}", err=True
    )
    if error.hint:
        typer.echo(
            f"{typer.style('hint:', fg='cyan', bold=True)} {terminal_text(error.hint)}", err=True
        )
    return error.exit_code


def _to_otter_error(error: Exception) -> OtterError:
    """Turns any exception into one that says what is wrong and what to do."""
    if isinstance(error, OtterError):
        return error
    if isinstance(error, typer.TyperException):
        return _usage_error(error)
    if isinstance(error, OSError) and error.strerror:
        where = f": {error.filename}" if error.filename else ""
        return OtterError(f"{error.strerror}{where}", hint="--debug shows where it happened")
    first_line = str(error).strip().partition("\n")[0]
    return OtterError(
        f"unexpected {type(error).__name__}: {first_line}",
        hint="this is a bug in otter: run it again with --debug for the traceback, and report it",
    )


def _usage_error(error: typer.TyperException) -> OtterError:
    """Typer's usage error in our form. Its suggestion becomes the hint."""
    # Typer's usage errors are private classes, so their attributes are looked up by name.
    near = getattr(error, "possibilities", None)
    context = getattr(error, "ctx", None)
    if near:
        what, hint = error.message, f"did you mean {near[0]}?"
    else:
        what, _, suggested = error.format_message().partition(" Did you mean ")
        command = context.command_path if context else "otter"
        hint = f"did you mean {suggested}" if suggested else f"`{command} --help` shows the usage"
    return OtterError(what[:1].lower() + what[1:].rstrip("."), hint=hint)
