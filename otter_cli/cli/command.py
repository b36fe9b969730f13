"""How a verb is written: one file in this folder, and one line in the table of `verbs.py`.

    app = verb_app()

    @verb(app, example="otter strip grafted base-again")
    def strip(
        folder: Annotated[Path, typer.Argument(help="the grafted folder")],
        to: Annotated[Path, typer.Argument(help="where the base goes")],
        copy: Annotated[bool, typer.Option(help="...", rich_help_panel="Files")] = False,
    ) -> Outcome:
        # The function's docstring is the help page. Heavy imports stand inside the function.
        from otter_cli.graft import strip_folder

        files = strip_folder(folder, to, copy=copy)
        return Outcome({"files": files}, view=lambda: f"{len(files)} files in {to}")

The decorator adds --json, --quiet and --debug. A verb returns its data, which --json prints, and
a view, which people see: text or any rich renderable, made only when it is shown. A verb writes
nothing to stdout itself, except text that it streams by `stdio.console()`. Messages and progress
go to stderr by `core.console`. A check that ran and failed sets `exit_code=1`; bad input raises
OtterError. Several functions in one file become subcommands, as in `otter recipes ls`. Options may
come from a pydantic model instead of the signature: see `options.py`.
"""

import functools
import inspect
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from otter_cli.cli import stdio
from otter_cli.cli.options import expand_models
from otter_cli.core.console import set_quiet
from otter_cli.core.errors import OtterError

if TYPE_CHECKING:
    from rich.console import RenderableType


@dataclass(frozen=True)
class Outcome:
    """What a verb hands back: `data` for --json (of a list a line for each), `view` for people, the
    process's exit code."""

    data: Mapping[str, Any] | Sequence[Mapping[str, Any]]
    view: "Callable[[], RenderableType]"
    exit_code: int = 0


def verb_app(
    *, help: str = "", example: str = "", cls: type[TyperGroup] | None = None
) -> typer.Typer:
    """An app for one verb; the arguments are for a verb with subcommands, whose page they make."""
    return typer.Typer(
        help=_escape_markup(help),
        epilog=_examples_text(example),
        cls=cls,
        add_completion=False,
        pretty_exceptions_enable=False,
    )


def verb(
    app: typer.Typer, *, example: str, name: str | None = None, uses_graft: bool = False
) -> Callable[[Callable[..., Outcome]], Callable[..., Outcome]]:
    """Register a function on `app`; `example` is one command a line, shown under its help. A verb
    that runs, trains or exports a graft takes --base-changed-ok too."""

    def register(function: Callable[..., Outcome]) -> Callable[..., Outcome]:
        from_docstring = _escape_markup(inspect.getdoc(function) or "")
        expanded = expand_models(function)
        app.command(name, help=from_docstring, epilog=_examples_text(example))(
            _command(_with_base_changed_option(expanded) if uses_graft else expanded)
        )
        return function

    return register


def _output_flag(option: str, help: str) -> Any:
    return Annotated[bool, typer.Option(option, help=help, rich_help_panel="Output")]


_BASE_CHANGED_OK = Annotated[
    bool,
    typer.Option(
        "--base-changed-ok",
        help="use a base whose files are not those that were grafted; results then say so",
        rich_help_panel="Base",
    ),
]

_OUTPUT_OPTIONS = {
    "as_json": _output_flag("--json", "one JSON object on stdout, nothing else there"),
    "quiet": _output_flag("--quiet", "no talk and no progress on stderr; warnings stay"),
    "debug": _output_flag("--debug", "a traceback with every error"),
}


def _command(function: Callable[..., Outcome]) -> Callable[..., None]:
    """`function` as typer sees it: with the options that every verb takes, its outcome printed."""

    @functools.wraps(function)
    def command(as_json: bool, quiet: bool, debug: bool, **arguments: Any) -> None:
        set_quiet(quiet)
        _check_text_decodes(arguments)
        _check_devices(arguments.get("device"))
        if as_json:
            with stdio.stdout_reserved():
                outcome = function(**arguments)
            if isinstance(outcome.data, Mapping):
                stdio.print_json(outcome.data)
            else:
                stdio.print_json_lines(outcome.data)
        else:
            outcome = function(**arguments)
            stdio.show(outcome.view())
        raise typer.Exit(outcome.exit_code)

    signature = inspect.signature(function, eval_str=True)
    common = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=False, annotation=kind)
        for name, kind in _OUTPUT_OPTIONS.items()
    ]
    parameters = [*signature.parameters.values(), *common]
    # inspect and typer look here first; functools.wraps has copied the rest.
    command.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    return command


def _check_devices(asked: str | list[str] | None) -> None:
    """Before any work, for every verb that takes --device."""
    devices = [asked] if isinstance(asked, str) else asked or []
    if any(device != "cpu" for device in devices):
        from otter_cli.model.load import check_device

        for device in devices:
            check_device(device)


def _with_base_changed_option(function: Callable[..., Outcome]) -> Callable[..., Outcome]:
    """`function` with an option that accepts a base which changed under its graft; what was
    accepted goes into its data."""

    @functools.wraps(function)
    def command(base_changed_ok: bool, **arguments: Any) -> Outcome:
        if not base_changed_ok:
            return function(**arguments)
        from otter_cli.core.provenance import base_changes
        from otter_cli.graft.grafted_folder import accept_changed_base

        with accept_changed_base():
            outcome = function(**arguments)
            return _with_base_changes(outcome, base_changes())

    signature = inspect.signature(function, eval_str=True)
    option = inspect.Parameter(
        "base_changed_ok",
        inspect.Parameter.KEYWORD_ONLY,
        default=False,
        annotation=_BASE_CHANGED_OK,
    )
    parameters = [*signature.parameters.values(), option]
    command.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    return command


def _with_base_changes(outcome: Outcome, changes: dict[str, str]) -> Outcome:
    if not changes:
        return outcome
    more = {"base_changed": changes}
    if isinstance(outcome.data, Mapping):
        return replace(outcome, data={**outcome.data, **more})
    return replace(outcome, data=[{**record, **more} for record in outcome.data])


def _check_text_decodes(arguments: Mapping[str, Any]) -> None:
    """Bytes that are no text come as halves of characters. A file's name may hold them; a text,
    which libraries and JSON must encode, may not."""
    for name, value in arguments.items():
        for text in value if isinstance(value, list) else [value]:
            if isinstance(text, str) and _SURROGATES.search(text) and not Path(text).exists():
                raise OtterError(
                    f"{name.replace('_', ' ')}: {text[:80]!r} is not {_encoding()} text",
                    hint="convert it, e.g. `iconv -f latin1 -t utf-8`, or set LANG=C.UTF-8",
                )


_SURROGATES = re.compile("[\ud800-\udfff]")


def _encoding() -> str:
    return sys.getfilesystemencoding().upper()


def _examples_text(commands: str) -> str:
    lines = inspect.cleandoc(commands).splitlines()
    title = "Example" if len(lines) == 1 else "Examples"
    return (
        _escape_markup("\n".join([f"{title}:", *(f"  {line}" for line in lines)])) if lines else ""
    )


def _escape_markup(text: str) -> str:
    """Square brackets are markup in typer's help; ours are meant."""
    return text.replace("[", "\\[")
