"""The table of verbs, and the typer group that imports a verb's file on first use.

`otter --help` prints this table alone: it imports no verb and none of rich's modules.
"""

from importlib import import_module
from typing import Annotated, Any, NamedTuple

import typer
from typer.core import TyperGroup
from typer.main import get_command

from otter_cli.cli.help_page import CONTEXT_SETTINGS
from otter_cli.core.errors import OtterError, closest


class Verb(NamedTuple):
    module: str
    panel: str
    summary: str


# In the order in which a user meets them. The overview shows panels in the same order.
VERBS = {
    "import": Verb("otter_cli.cli.import_", "Checkpoints", "turn a GGUF file into a checkpoint"),
    "inspect": Verb("otter_cli.cli.inspect", "Checkpoints", "show what a folder holds"),
    "graft": Verb("otter_cli.cli.graft", "Checkpoints", "add inserted tensors to a base"),
    "attach": Verb("otter_cli.cli.attach", "Checkpoints", "put an adapter beside its base again"),
    "strip": Verb("otter_cli.cli.strip", "Checkpoints", "write the base back, byte for byte"),
    "compose": Verb("otter_cli.cli.compose", "Checkpoints", "join two grafts of one base"),
    "verify": Verb("otter_cli.cli.verify", "Checkpoints", "prove that the base's logits are equal"),
    "export": Verb("otter_cli.cli.export", "Checkpoints", "write an adapter, or another layout"),
    "data": Verb("otter_cli.cli.data", "Training", "check a data file before you train on it"),
    "train": Verb("otter_cli.cli.train", "Training", "train inserted tensors, or a baseline"),
    "generate": Verb("otter_cli.cli.generate", "Use", "write text, with signals for every token"),
    "chat": Verb("otter_cli.cli.chat", "Use", "talk with a graft, tokens coloured by a signal"),
    "serve": Verb("otter_cli.cli.serve", "Use", "a server with OpenAI's API, and a page to watch"),
    "bench": Verb("otter_cli.cli.bench", "Use", "compare with plain decoding and baselines"),
    "demo": Verb("otter_cli.cli.demo", "Help", "graft, train and compare on a small model"),
    "models": Verb("otter_cli.cli.models", "Help", "fetch small real models to try otter on"),
    "recipes": Verb("otter_cli.cli.recipes", "Help", "list, show and copy the recipes that ship"),
    "explain": Verb("otter_cli.cli.explain", "Help", "what the terms of otter mean"),
    "doctor": Verb("otter_cli.cli.doctor", "Help", "versions, hardware, memory, what is missing"),
}


def overview() -> str:
    """The page of `otter --help`: the verbs by panel, and what all of them have in common."""
    # This layout does without rich, whose import takes longer than everything else together.
    from typer import style

    width = max(map(len, VERBS)) + 3
    lines = [f"{style('Usage:', bold=True)} otter VERB [OPTIONS]", "", _OVERVIEW_TITLE]
    for panel in dict.fromkeys(verb.panel for verb in VERBS.values()):
        lines += ["", style(panel, bold=True)]
        lines += [
            f"  {style(name.ljust(width), fg='cyan')}{verb.summary}"
            for name, verb in VERBS.items()
            if verb.panel == panel
        ]
    return "\n".join([*lines, "", _OVERVIEW_END])


_OVERVIEW_TITLE = """\
Rewards, toxicity scores and future tokens from the same forward pass as a frozen language model's
logits. The logits stay equal to the base's, bit for bit."""

_OVERVIEW_END = """\
Every verb takes --json (one object on stdout, nothing else), --quiet, --debug and -h.
Exit codes: 0 success, 1 a check failed, 2 bad usage or input, 130 interrupted."""


class VerbGroup(TyperGroup):
    """The group of all verbs. Typer's context type is private, hence Any in the signatures."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name in VERBS:
            command = get_command(import_module(VERBS[cmd_name].module).app)
            # Shell completion shows this line. The verb's own page is unchanged.
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


def _show_version(requested: bool) -> None:
    if requested:
        from otter_cli import __version__

        typer.echo(f"otter {__version__}")
        raise typer.Exit


app = typer.Typer(
    cls=VerbGroup,
    context_settings=CONTEXT_SETTINGS,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


@app.callback()
def otter(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="the version")
    ] = False,
) -> None:
    pass
