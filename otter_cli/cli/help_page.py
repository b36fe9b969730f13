"""How a verb's help page shows options: flags without a type, repeatable options by the type of one
value, and required options in the usage line. Every page opens by --help and by -h. Empty values
are refused."""

from __future__ import annotations

import re
from typing import Any

from typer.core import TyperArgument, TyperCommand, TyperGroup, TyperOption

from otter_cli.core.errors import OtterError

CONTEXT_SETTINGS = {"help_option_names": ["--help", "-h"]}

# Text, which may be empty.
_TEXTS = ("prompt", "system", "stop", "template")

_TYPE_NAMES = {"str": "text", "float": "number", "int range": "int", "float range": "number"}
_REPEATABLE = re.compile(r"<list\[(.*)\]>")


class HelpPage:
    """What the pages of commands and groups share. Typer's types are private, hence Any."""

    def get_params(self, ctx: Any) -> list[Any]:
        params: list[Any] = super().get_params(ctx)  # type: ignore[misc]
        for param in params:
            if param.metavar is None:
                _show_type(param, ctx)
        return params

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        pieces = ["[OPTIONS]"]
        params = self.get_params(ctx)
        for param in params:
            if isinstance(param, TyperOption) and param.required:
                pieces.append(f"{param.opts[0]} {param.metavar}")
        for param in params:
            if isinstance(param, TyperArgument):
                name = str(param.metavar).strip("[]")
                pieces.append(name if param.required else f"[{name}]")
        return pieces


class VerbCommand(HelpPage, TyperCommand):
    """A command with such a page. Its --help stands with the options that all verbs share, and
    `glossary_groups` are explained below the options. An empty value is refused before it is
    converted: `Path("")` is the current folder."""

    glossary_groups: tuple[str, ...] = ()

    def format_help(self, ctx: Any, formatter: Any) -> None:
        examples = self.epilog
        terms = [*map(_terms_text, self.glossary_groups)]
        more = ["`otter explain TERM` says more."] if terms else []
        self.epilog = "\n\n".join([*terms, *more, examples or ""])
        super().format_help(ctx, formatter)
        self.epilog = examples

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        given, _, _ = self.make_parser(ctx).parse_args(args=list(args))
        for param in self.get_params(ctx):
            value = given.get(param.name)
            values = value if isinstance(value, list | tuple) else [value]
            if param.name not in _TEXTS and "" in values:
                name = (
                    param.opts[0]
                    if isinstance(param, TyperOption)
                    else str(param.metavar).strip("[]")
                )
                raise OtterError(
                    f"{name} is empty", hint="a variable of the shell that is not set gives this"
                )
        rest: list[str] = super().parse_args(ctx, args)
        return rest

    def get_help_option(self, ctx: Any) -> Any:
        option = super().get_help_option(ctx)
        if isinstance(option, TyperOption):
            option.help, option.rich_help_panel = "this page", "Output"
        return option


def verb_command(glossary_groups: tuple[str, ...] = ()) -> type[VerbCommand]:
    """The class of a command whose page explains these groups of terms."""
    return type("VerbCommand", (VerbCommand,), {"glossary_groups": glossary_groups})


def _terms_text(group: str) -> str:
    from otter_cli.core.glossary import glossary

    lines = [f"  {term.name}: {term.first_sentence}" for term in glossary() if term.group == group]
    return "\n".join([f"{group[:1].upper()}{group[1:]}:", *lines])


class VerbGroupPage(HelpPage, TyperGroup):
    """A group of subcommands with such a page."""

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        return [*super().collect_usage_pieces(ctx), "COMMAND"]


def _show_type(param: Any, ctx: Any) -> None:
    shown = _type_name(param, ctx)
    if isinstance(param, TyperArgument):
        param.metavar = param.name.upper()
        # The table of arguments has no other place for the type of a value.
        vars(param)["display_type_rich"] = lambda ctx: shown
    else:
        param.metavar = shown


def _type_name(param: Any, ctx: Any) -> str:
    if getattr(param, "is_flag", False):
        return ""
    name = _REPEATABLE.sub(r"<\1>", param.display_type(ctx)).strip("<>")
    return f"<{_TYPE_NAMES.get(name, name)}>"
