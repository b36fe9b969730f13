"""Writes the page of terms from the glossary of `otter explain` when the site is built."""

import sys
from itertools import groupby
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

sys.path.insert(0, str(Path(__file__).parent))
from cli_reference import cell


def on_files(files: Any, config: Any, **_: Any) -> Any:
    files.append(File.generated(config, "reference/glossary.md", content=glossary_page()))
    return files


def glossary_page() -> str:
    from otter_cli.core.glossary import glossary

    parts = [
        "# Glossary",
        "The terms of recipes, options and reports, as `otter explain` has them.",
    ]
    for group, terms in groupby(glossary(), key=lambda term: term.group):
        rows = ["| term | meaning | more |", "|---|---|---|"]
        for term in terms:
            names = ", ".join(f"`{name}`" for name in (term.name, *term.also))
            anchor = "".join(c for c in term.section.lower() if c.isalnum() or c in " -")
            link = f"[{term.section}](../{term.page}#{anchor.replace(' ', '-')})"
            rows.append(f"| {names} | {cell(term.text)} | {link} |")
        parts += [f"## {group.capitalize()}", "\n".join(rows)]
    return "\n\n".join(parts) + "\n"
