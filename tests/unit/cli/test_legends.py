"""Every table of the verbs says below it what its columns mean."""

import ast
from pathlib import Path

from otter_cli.cli.tables import legend


def calls(tree: ast.AST, name: str) -> list[ast.Call]:
    return [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == name
    ]


def test_each_file_with_a_table_of_figures_has_a_legend_for_each(repository: Path) -> None:
    tabled = {}
    for path in (repository / "otter_cli" / "cli").rglob("*.py"):
        if path.name == "tables.py":
            continue
        tree = ast.parse(path.read_text())
        # Two titles, such as a name and what it does, explain themselves.
        tables = [
            call
            for name in ("plain_table", "Table", "token_table")
            for call in calls(tree, name)
            if name == "token_table" or len(call.args) != 2
        ]
        if tables:
            tabled[path.name] = (len(tables), len(calls(tree, "legend")))
    assert len(tabled) >= 6
    assert all(legends >= tables for tables, legends in tabled.values()), tabled


def test_a_legend_is_plain_text() -> None:
    assert legend("n: [how many]").plain == "n: [how many]"
