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
a view for people: text or any rich renderable, which is made only if it is shown. A verb writes
nothing to stdout itself, except text that it streams by `stdio.console()`. Messages and progress
go to stderr by `core.console`. A check that ran and failed sets `exit_code=1`. Bad input raises
OtterError. Several functions in one file become subcommands, as in `otter recipes ls`. Options may
come from a pydantic model instead of the signature: see `options.py`.
"""

import functools
import inspect
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from otter_cli.cli import stdio
from otter_cli.cli.help_page import CONTEXT_SETTINGS, VerbGroupPage, verb_command
from otter_cli.cli.options import expand_models
from otter_cli.core.console import say, set_quiet
from otter_cli.core.errors import OtterError

if TYPE_CHECKING:
    from rich.console import RenderableType


INTERRUPTED = 130  # the exit code after Ctrl-C


@dataclass(frozen=True)
class Outcome:
    """What a verb returns: `data` for --json (a list gives one line per record), `view` for people,
    and the exit code of the process. `piped`: the text itself, where the view is more than what a
    program wants. It replaces the view under --quiet, and where stdout is no terminal."""

    data: Mapping[str, Any] | Sequence[Mapping[str, Any]]
    view: "Callable[[], RenderableType]"
    exit_code: int = 0
    piped: Callable[[], str] | None = None


def verb_app(
    *, help: str = "", example: str = "", cls: type[TyperGroup] | None = None
) -> typer.Typer:
    """An app for one verb. The arguments make the help page of a verb with subcommands."""
    return typer.Typer(
        help=_escape_markup(help),
        epilog=_examples_text(example),
        cls=cls or VerbGroupPage,
        context_settings=CONTEXT_SETTINGS,
        add_completion=False,
        pretty_exceptions_enable=False,
    )


def verb(
    app: typer.Typer,
    *,
    example: str,
    name: str | None = None,
    uses_graft: bool = False,
    terms: tuple[str, ...] = (),
    computes: bool = False,
) -> Callable[[Callable[..., Outcome]], Callable[..., Outcome]]:
    """Register a function on `app`. `example` holds one command per line, shown under the help.
    With `uses_graft`, the verb also takes --base-changed-ok. `terms`: groups of the glossary whose
    terms the help page lists. With `computes`, it runs models: it takes --threads, and torch's
    threads are decided before the function is called."""

    def register(function: Callable[..., Outcome]) -> Callable[..., Outcome]:
        page = _escape_markup(_paragraphs(inspect.getdoc(function) or ""))
        expanded = expand_models(function)
        app.command(
            name,
            cls=verb_command(terms),
            context_settings=CONTEXT_SETTINGS,
            help=page,
            epilog=_examples_text(example),
        )(_command(expanded, uses_graft, computes))
        return function

    return register


def _flag(option: str, help: str, panel: str = "Output") -> Any:
    return Annotated[bool, typer.Option(option, help=help, rich_help_panel=panel)]


_OUTPUT_OPTIONS = {
    "as_json": _flag("--json", "one JSON object on stdout, nothing else there"),
    "quiet": _flag("--quiet", "no messages and no progress on stderr; warnings stay"),
    "debug": _flag("--debug", "a traceback with every error"),
}
_BASE_OPTION = {
    "base_changed_ok": _flag(
        "--base-changed-ok",
        "use a base whose files have changed since it was grafted; the results say so",
        panel="Base",
    )
}
_THREADS_OPTION = Annotated[
    int | None,
    typer.Option(
        "--threads",
        min=1,
        help="threads of torch, on a CPU (default: by the cores that are allowed and free)",
        rich_help_panel="Machine",
    ),
]


def _command(
    function: Callable[..., Outcome], uses_graft: bool, computes: bool
) -> Callable[..., None]:
    """`function` as typer sees it: with the options that verbs share, its outcome printed."""
    signature = inspect.signature(function, eval_str=True)
    own_threads = "threads" in signature.parameters

    @functools.wraps(function)
    def command(
        as_json: bool, quiet: bool, debug: bool, base_changed_ok: bool = False, **arguments: Any
    ) -> None:
        set_quiet(quiet)
        _check_text_decodes(arguments)
        if computes:
            threads = arguments["threads"] if own_threads else arguments.pop("threads")
            if not arguments.get("static"):  # `verify --static` runs no model
                _prepare_threads(threads)
        _check_devices(arguments.get("device"))
        run = functools.partial(_run_on_changed_base, function) if base_changed_ok else function
        with stdio.stdout_reserved() if as_json else nullcontext():
            outcome = run(**arguments)
        if not as_json:
            _show(outcome, quiet)
        elif isinstance(outcome.data, Mapping):
            stdio.print_json(outcome.data)
        else:
            stdio.print_json_lines(outcome.data)
        raise typer.Exit(outcome.exit_code)

    shared = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=False, annotation=flag)
        for name, flag in [*(_BASE_OPTION.items() if uses_graft else ()), *_OUTPUT_OPTIONS.items()]
    ]
    if computes and not own_threads:
        threads = inspect.Parameter(
            "threads", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=_THREADS_OPTION
        )
        shared.insert(0, threads)
    parameters = [*signature.parameters.values(), *shared]
    # inspect and typer look here first; functools.wraps has copied the rest.
    command.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    return command


def _show(outcome: Outcome, quiet: bool) -> None:
    whole = outcome.piped is None or (sys.stdout.isatty() and not quiet)
    shown = outcome.view() if whole or outcome.piped is None else outcome.piped()
    if shown != "":
        stdio.show(shown)


def _run_on_changed_base(function: Callable[..., Outcome], **arguments: Any) -> Outcome:
    """Runs a verb that accepts a changed base. Its data then list the changes that it met."""
    from otter_cli.core.provenance import base_changes
    from otter_cli.graft.grafted_folder import accept_changed_base

    with accept_changed_base():
        outcome = function(**arguments)
        changes = base_changes()
    if not changes:
        return outcome
    if isinstance(outcome.data, Mapping):
        return replace(outcome, data={**outcome.data, "base_changed": changes})
    return replace(outcome, data=[{**r, "base_changed": changes} for r in outcome.data])


def _prepare_threads(requested: int | None) -> None:
    from otter_cli.core.threads import prepare_threads

    plan = prepare_threads(requested)
    if plan is not None and plan.fewer_for_load:
        say(f"threads: {plan.sentence}; --threads sets another number")


def _check_devices(value: str | list[str] | None) -> None:
    """Checks the value of --device before any work. Raises OtterError."""
    devices = [value] if isinstance(value, str) else value or []
    if any(device != "cpu" for device in devices):
        from otter_cli.model.load import check_device

        for device in devices:
            check_device(device)


def _check_text_decodes(arguments: Mapping[str, Any]) -> None:
    """Raises OtterError for text with surrogate characters, which stand for bytes that are not
    valid text. The name of a file that exists may hold them; libraries and JSON cannot encode
    them."""
    for name, value in arguments.items():
        for text in value if isinstance(value, list) else [value]:
            if isinstance(text, str) and _SURROGATES.search(text) and not Path(text).exists():
                encoding = sys.getfilesystemencoding().upper()
                raise OtterError(
                    f"{name.replace('_', ' ')}: {text[:80]!r} is not {encoding} text",
                    hint="convert it, e.g. `iconv -f latin1 -t utf-8`, or set LANG=C.UTF-8",
                )


_SURROGATES = re.compile("[\ud800-\udfff]")


def _examples_text(commands: str) -> str:
    lines = inspect.cleandoc(commands).splitlines()
    if not lines:
        return ""
    title = "Example" if len(lines) == 1 else "Examples"
    return _escape_markup("\n".join([f"{title}:", *(f"  {line}" for line in lines)]))


def _paragraphs(docstring: str) -> str:
    """The docstring with one line for each paragraph, so that a terminal of any width wraps it."""
    return "\n\n".join(" ".join(part.split()) for part in docstring.split("\n\n"))


def _escape_markup(text: str) -> str:
    """Escapes square brackets, which typer's help would take for markup."""
    return text.replace("[", "\\[")
