"""Only a few functions write strings out of otter, and each escapes them; a scan finds others."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[2] / "otter_cli"
# Console only as a type: SafeConsole is the one that is made. Panel, Rule and the like read markup.
RICH = {"Console", "Group", "RenderableType", "Table", "Text"}
ALLOWED = {
    "rich": {"core/safe_console.py", "core/console.py"},
    "echo": {"cli/main.py", "cli/verbs.py"},
    "write": {"cli/stdio.py"},
    # Markup is not escaped again: these return SVG and JSON whose strings they have escaped.
    "markup": {"reports/html.py", "reports/plots.py"},
    # The environment of reports escapes; chat_template only parses a model's template.
    "jinja2": {"reports/html.py", "data/chat_template.py"},
}


def _unescaped(tree: ast.Module, path: str) -> Iterator[str]:
    for node in ast.walk(tree):
        where = f"{path}:{getattr(node, 'lineno', 0)}"
        if isinstance(node, ast.ImportFrom) and node.module:
            names = {alias.name for alias in node.names}
            if node.module.startswith("rich") and path not in ALLOWED["rich"] and names - RICH:
                yield f"{where}: rich's {names - RICH} may read markup: use Table, Text and Group"
            if node.module == "html":
                yield f"{where}: use html_text of reports.html, or a template"
            if "Markup" in names and path not in ALLOWED["markup"]:
                yield f"{where}: Markup is not escaped: use a template of reports"
            if "Environment" in names and path not in ALLOWED["jinja2"]:
                yield f"{where}: use the environment of reports.html, which escapes"
        elif isinstance(node, ast.Import):
            if any(alias.name.startswith("rich") for alias in node.names):
                yield f"{where}: import names from rich, so that this test sees them"
        elif isinstance(node, ast.Call):
            yield from (f"{where}: {fault}" for fault in _calls(node, path))


def _calls(node: ast.Call, path: str) -> Iterator[str]:
    name = ast.unparse(node.func)
    if name in ("print", "sys.stdout.write", "sys.stderr.write") and path not in ALLOWED["write"]:
        yield f"{name} writes to the terminal as it is: use core.console or a verb's view"
    if name.rpartition(".")[2] in ("echo", "secho") and path not in ALLOWED["echo"]:
        yield f"{name} writes to the terminal as it is: use core.console or a verb's view"
    if name == "Console" or name.endswith(
        ("from_markup", "from_ansi", "print_exc", "print_exception")
    ):
        yield f"{name} escapes nothing: use SafeConsole, Text, or raise"
    for keyword in node.keywords:
        if keyword.arg == "markup" and ast.unparse(keyword.value) != "False":
            yield "markup is read from a string: build a Text with a style"


FILES = sorted(PACKAGE.rglob("*.py"))


def test_no_module_writes_past_the_escapes() -> None:
    faults = [
        fault
        for file in FILES
        for fault in _unescaped(
            ast.parse(file.read_text(encoding="utf-8")), file.relative_to(PACKAGE).as_posix()
        )
    ]
    assert not faults, "\n".join(faults)


@pytest.mark.parametrize(
    "source",
    [
        "print('x')",
        "from rich.panel import Panel",
        "import rich.console",
        "console = Console()",
        "Text.from_markup('x')",
        "typer.echo('x')",
        "console().print('x', markup=True)",
        "sys.stdout.write('x')",
        "from html import escape",
        "from markupsafe import Markup",
        "from jinja2 import Environment",
        "traceback.print_exc()",
    ],
)
def test_the_scan_finds_each_way_out(source: str) -> None:
    assert list(_unescaped(ast.parse(source), "cli/new_verb.py"))
