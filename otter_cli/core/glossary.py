"""The terms that recipes, options and reports use, in plain English: the data of
`otter explain`."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

from otter_cli.core.errors import OtterError
from otter_cli.core.strict_files import parse_yaml, read_small_text_file

_FILE = Path(__file__).with_name("glossary.yaml")


class Term(NamedTuple):
    """`page`: a file in docs/ and the title of a section. `also`: other names of the term."""

    name: str
    group: str
    text: str
    page: str
    section: str
    also: tuple[str, ...]

    @property
    def first_sentence(self) -> str:
        return self.text.partition(". ")[0].removesuffix(".")

    @property
    def place(self) -> str:
        return f'docs/{self.page}, "{self.section}"'


@cache
def glossary() -> tuple[Term, ...]:
    """All terms, in groups, in the order of the file."""
    groups = parse_yaml(read_small_text_file(_FILE), str(_FILE), hint="install otter again")
    return tuple(_terms(groups))


def _terms(groups: dict[str, dict[str, dict[str, str]]]) -> Iterator[Term]:
    for group, terms in groups.items():
        for name, entry in terms.items():
            page, _, section = entry["page"].partition("#")
            yield Term(name, group, entry["text"], page, section, tuple(entry.get("also", ())))


def find_term(text: str) -> Term:
    """The term of this name, whatever its case, with - for _ or not. Raises OtterError with the
    nearest names."""
    by_name = {_key(name): term for term in glossary() for name in (*term.also, term.name)}
    key = _key(text)
    if key in by_name:
        return by_name[key]
    inside = [name for name in by_name if key and key in name]
    near = list(dict.fromkeys([*difflib.get_close_matches(key, by_name, 3, 0.6), *inside]))[:3]
    names = ", ".join(repr(by_name[name].name) for name in near)
    hint = f"did you mean {names}? " if near else ""
    raise OtterError(f"the glossary has no {text!r}", hint=f"{hint}`otter explain` lists all terms")


def explain_hint(*names: str) -> str:
    """The command that explains the first of the names that is a term; empty where none is."""
    known = {_key(name) for term in glossary() for name in (*term.also, term.name)}
    for name in names:
        if _key(name) in known:
            return f"`otter explain {name}` says what it means"
    return ""


def _key(text: str) -> str:
    return " ".join(text.lower().replace("_", " ").replace("-", " ").split())
