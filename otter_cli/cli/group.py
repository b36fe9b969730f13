"""`otter` itself: looks a verb up in the table and imports its file only then."""

from importlib import import_module
from typing import Annotated, Any

import typer
from typer.core import TyperGroup
from typer.main import get_command

from otter_cli.cli.verbs import VERBS, overview
from otter_cli.core.errors import OtterError
from otter_cli.core.suggest import closest


class VerbGroup(TyperGroup):
    """Typer's group over the table: its context type is private, hence Any in the signatures."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name in VERBS:
            command = get_command(import_module(VERBS[cmd_name].module).app)
            # Shell completion shows this line; the verb's own page stays as its file says.
            command.short_help = VERBS[cmd_name].summary
            return command
        if ctx.resilient_parsing or cmd_name.startswith("-"):
            return None
        near = closest(cmd_name, VERBS)
        raise OtterError(
            f"no verb {cmd_name!r}",
            hint=f"did you mean `otter {near}`?" if near else "`otter --help` lists the verbs",
        )

    def format_help(self, ctx: Any, formatter: Any) -> None:
        formatter.write(overview())


def _show_version(wanted: bool) -> None:
    if wanted:
        from otter_cli import __version__

        typer.echo(f"otter {__version__}")
        raise typer.Exit


app = typer.Typer(cls=VerbGroup, no_args_is_help=True, pretty_exceptions_enable=False)


@app.callback()
def otter(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="the version")
    ] = False,
) -> None:
    pass
