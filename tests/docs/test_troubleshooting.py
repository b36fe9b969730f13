"""The page of troubleshooting names every class of errors, and messages that the code has."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs/troubleshooting.md").read_text()
SOURCES = {path: path.read_text() for path in (ROOT / "otter_cli").rglob("*.py")}


def error_classes() -> dict[str, int]:
    """The exit code of OtterError and of every class below it, by name."""
    bases: dict[str, tuple[list[str], int | None]] = {}
    for source in SOURCES.values():
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.ClassDef):
                codes = [
                    statement.value.value
                    for statement in node.body
                    if isinstance(statement, ast.Assign)
                    and isinstance(statement.targets[0], ast.Name)
                    and statement.targets[0].id == "exit_code"
                    and isinstance(statement.value, ast.Constant)
                ]
                names = [ast.unparse(base).rpartition(".")[2] for base in node.bases]
                bases[node.name] = (names, codes[0] if codes else None)
    found = {"OtterError": 2}
    while True:
        new = {
            name: code if code is not None else found[parent]
            for name, (parents, code) in bases.items()
            for parent in parents
            if parent in found and name not in found
        }
        if not new:
            return found
        found |= new


def test_every_class_of_errors_is_named_with_its_exit_code_and_a_cure() -> None:
    rows = {
        cells[1]: cells
        for line in PAGE.splitlines()
        if len(cells := re.split(r"\s*\|\s*", line)) > 4
    }
    assert len(error_classes()) > 1
    for name, code in error_classes().items():
        row = rows.get(f"`{name}`")
        assert row is not None, f"docs/troubleshooting.md does not name {name}"
        assert row[2].startswith(str(code)) and len(row[4]) > 10


def test_messages_that_the_page_quotes_are_in_the_code() -> None:
    quoted = re.findall(r"^\| `([^`|]+)` \| \D", PAGE, re.MULTILINE)
    code = "\n".join(SOURCES.values())
    assert len(quoted) > 20
    assert [message for message in quoted if message not in code] == []
