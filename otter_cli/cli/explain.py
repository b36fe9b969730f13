"""`otter explain`: what the terms of recipes, options and reports mean."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from otter_cli.cli.command import Outcome, verb, verb_app
from otter_cli.cli.tables import facts_table

if TYPE_CHECKING:
    from rich.console import RenderableType

    from otter_cli.core.glossary import Term


app = verb_app()


@verb(app, example="otter explain\notter explain bradley-terry held_out mapping")
def explain(
    term: Annotated[
        list[str] | None, typer.Argument(help="a term, or several; without one all are listed")
    ] = None,
) -> Outcome:
    """Explain a term of recipes, options and reports, in two sentences. Alone: list the terms."""
    from otter_cli.core.glossary import find_term, glossary

    terms = [find_term(name) for name in term] if term else list(glossary())
    data = {"terms": [each._asdict() for each in terms]}
    return Outcome(data, view=lambda: _pages(terms) if term else _list(terms))


def _pages(terms: list[Term]) -> RenderableType:
    from rich.console import Group
    from rich.text import Text

    parts: list[RenderableType] = []
    for number, term in enumerate(terms):
        others = [name for name in term.also if name.lower() != term.name.lower()]
        names = f" (also: {', '.join(others)})" if others else ""
        title = Text(term.name, "bold").append(names, "not bold dim")
        parts += ["" for _ in range(min(number, 1))]
        parts += [title, Text(term.text), Text(f"more: {term.place}", "dim")]
    return Group(*parts)


def _list(terms: list[Term]) -> RenderableType:
    from rich.console import Group
    from rich.text import Text

    parts: list[RenderableType] = []
    for group in dict.fromkeys(term.group for term in terms):
        rows = [(term.name, term.first_sentence) for term in terms if term.group == group]
        parts += [Text(group, "bold"), facts_table(rows), ""]
    return Group(*parts, "`otter explain TERM` says more.")
