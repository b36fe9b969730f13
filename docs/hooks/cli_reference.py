"""Writes the page of the command line from the commands themselves, when the site is built."""

import html
import re
from importlib import import_module
from typing import Any

from mkdocs.structure.files import File

_ESCAPED_BRACKET = re.compile(r"\\\[")
# Every verb takes these: the top of the page says so once.
_SHARED = {"--json", "--quiet", "--debug", "--help"}


def on_files(files: Any, config: Any, **_: Any) -> Any:
    files.append(File.generated(config, "reference/cli.md", content=cli_page()))
    return files


def cli_page() -> str:
    from typer.main import get_command

    from otter_cli.cli.verbs import VERBS

    parts = [_INTRODUCTION]
    for panel in dict.fromkeys(verb.panel for verb in VERBS.values()):
        parts.append(f"## {panel}")
        for name, verb in VERBS.items():
            if verb.panel == panel:
                parts += _command(get_command(import_module(verb.module).app), f"otter {name}", 3)
    return "\n\n".join(parts) + "\n"


_INTRODUCTION = """\
# Command line

This page is made from the commands of the installed version. Every verb takes `--json` (one object
on stdout, nothing else there), `--quiet`, `--debug` and `--help`. Exit codes: 0 success, 1 a check
failed, 2 bad usage or input, 130 interrupted."""


def _command(command: Any, name: str, level: int) -> list[str]:
    """The sections of a command, and of its subcommands below it."""
    parts = [f"{'#' * level} {name}", _help(command.help or "")]
    inner = getattr(command, "commands", None)
    if inner:
        for word in command.list_commands(None):
            parts += _command(inner[word], f"{name} {word}", level + 1)
        return parts
    arguments = [p for p in command.params if p.param_type_name == "argument"]
    usage = " ".join([name, *(_argument(p) for p in arguments), "[OPTIONS]"])
    parts.append(f"```text\n{usage}\n```")
    shown = [p for p in command.params if not p.hidden and not _SHARED & set(p.opts)]
    if shown:
        parts.append("\n".join(["| | what it is | default |", "|---|---|---|", *map(_row, shown)]))
    parts += _examples(command.epilog or "")
    return parts


def _argument(parameter: Any) -> str:
    name = str(parameter.name).upper()
    return name if parameter.required else f"[{name}]"


def _row(parameter: Any) -> str:
    if parameter.param_type_name == "argument":
        name = f"`{_argument(parameter)}`"
    else:
        name = ", ".join(f"`{option}`" for option in [*parameter.opts, *parameter.secondary_opts])
    default = parameter.default
    if parameter.required:
        shown = "required"
    elif default is None or default is False or default in ((), []):
        shown = ""
    else:
        shown = f"`{_text(default)}`"
    return f"| {name} | {cell(parameter.help or '')} | {shown} |"


def _text(default: Any) -> str:
    if isinstance(default, list | tuple):
        return ", ".join(map(_text, default))
    return str(getattr(default, "value", default))


def _help(text: str) -> str:
    return "\n\n".join(cell(part) for part in _ESCAPED_BRACKET.sub("[", text).split("\n\n"))


def _examples(epilog: str) -> list[str]:
    lines = _ESCAPED_BRACKET.sub("[", epilog).splitlines()
    commands = "\n".join(line.strip() for line in lines[1:])
    return [f"```bash\n{commands}\n```"] if commands else []


def cell(text: str) -> str:
    """Text for a cell of a table: one line, with code in backticks kept and all else escaped."""
    text = " ".join(_ESCAPED_BRACKET.sub("[", text).split())
    parts = text.split("`")
    if len(parts) % 2 == 0:  # a backtick without its partner is no code
        parts = [text]
    plain = [
        f"`{part}`" if place % 2 else re.sub(r"([*_\[\]\\|])", r"\\\1", html.escape(part, False))
        for place, part in enumerate(parts)
    ]
    return "".join(plain).replace("`|`", "`\\|`")
