"""Help as a person reads it: every verb, 100 columns wide."""

import re
from importlib import import_module
from typing import Any

import pytest
from typer.core import TyperGroup
from typer.main import get_command

from otter_cli.cli.verbs import VERBS, overview
from tests.conftest import Otter


def commands() -> list[tuple[tuple[str, ...], Any]]:
    """Every verb and subcommand with its path: ("recipes", "ls")."""
    found: list[tuple[tuple[str, ...], Any]] = []
    for name, verb in VERBS.items():
        command = get_command(import_module(verb.module).app)
        found.append(((name,), command))
        if isinstance(command, TyperGroup):
            found += [((name, sub), inner) for sub, inner in command.commands.items()]
    return found


ALL = commands()
LEAVES = [(path, command) for path, command in ALL if not isinstance(command, TyperGroup)]


def test_the_overview_lists_every_verb_within_100_columns(otter: Otter) -> None:
    shown = otter("--help")
    assert shown.returncode == 0
    assert shown.stdout.strip() == overview_without_colour()
    for name, verb in VERBS.items():
        assert re.search(rf"^  {name} +{re.escape(verb.summary)}$", shown.stdout, re.M)
    assert max(map(len, shown.stdout.splitlines())) <= 100


def overview_without_colour() -> str:
    return re.sub(r"\x1b\[[0-9;]*m", "", overview()).strip()


def test_otter_alone_shows_the_overview(otter: Otter) -> None:
    assert otter().stdout == otter("--help").stdout


@pytest.mark.parametrize(("path", "command"), ALL, ids=[" ".join(path) for path, _ in ALL])
def test_a_verbs_page_is_whole_and_has_an_example(
    path: tuple[str, ...], command: Any, monkeypatch: Any, capsys: Any
) -> None:
    from otter_cli.cli.main import main

    monkeypatch.setenv("COLUMNS", "100")
    assert main([*path, "--help"]) == 0
    page = capsys.readouterr().out
    assert max(map(len, page.splitlines())) <= 100
    assert "…" not in page, "something was cut off"
    assert re.search(rf"Examples?:\s+otter {path[0]}\b", page), "an example is missing"
    # Boxes and line breaks apart, every word of every option's help must be there: square
    # brackets would be taken for markup and vanish.
    words = " ".join(re.sub(r"[│╭╮╰╯─]", " ", page).split())
    for param in command.params:
        for word in (getattr(param, "help", None) or "").replace("\\[", "[").split():
            assert word in words, f"{param.name}: {word!r} is missing"
    assert command.help.replace("\\[", "[").split("\n")[0][:60] in words


@pytest.mark.parametrize(("path", "command"), LEAVES, ids=[" ".join(path) for path, _ in LEAVES])
def test_every_verb_takes_the_common_options(path: tuple[str, ...], command: Any) -> None:
    options = {option for param in command.params for option in param.opts}
    assert {"--json", "--quiet", "--debug"} <= options


def test_version(otter: Otter) -> None:
    from otter_cli import __version__

    assert otter("--version").stdout == f"otter {__version__}\n"


@pytest.mark.parametrize(("path", "command"), ALL, ids=[" ".join(path) for path, _ in ALL])
@pytest.mark.parametrize("columns", [80, 100])
def test_a_flag_shows_no_type_and_the_short_option_opens_the_same_page(
    path: tuple[str, ...], command: Any, columns: int, monkeypatch: Any, capsys: Any
) -> None:
    from otter_cli.cli.main import main

    monkeypatch.setenv("COLUMNS", str(columns))
    assert main([*path, "-h"]) == 0
    page = capsys.readouterr().out
    assert main([*path, "--help"]) == 0
    assert capsys.readouterr().out == page
    assert not re.search(r"<bool>|list\[|<str>", page)
    assert max(map(len, page.splitlines())) <= columns


@pytest.mark.parametrize(("path", "command"), LEAVES, ids=[" ".join(path) for path, _ in LEAVES])
def test_required_options_stand_in_the_usage_line(
    path: tuple[str, ...], command: Any, monkeypatch: Any, capsys: Any
) -> None:
    from otter_cli.cli.main import main

    monkeypatch.setenv("COLUMNS", "100")
    main([*path, "-h"])
    usage = re.search(r"Usage:(.*?)\n\s*\n", capsys.readouterr().out, re.S)
    assert usage
    for param in command.params:
        if param.required:
            named = param.opts[0] if param.opts[0].startswith("-") else param.metavar or param.name
            assert named.lower() in usage[1].lower()


def test_an_option_that_another_replaces_says_when_it_is_required(capsys: Any) -> None:
    command = dict(LEAVES)["bench", "preference"]
    helps = {param.name: param.help for param in command.params if param.name != "folder"}
    for name in ("prompts", "gold"):
        assert helps[name].endswith("(required without --pairs)")
    assert "required" not in helps["pairs"]
