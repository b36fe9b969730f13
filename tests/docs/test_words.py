"""README and quick start are short and define their terms. Links lead somewhere."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "README.md"
QUICK_START = ROOT / "docs/quickstart.md"
PAGES = [README, ROOT / "CONTRIBUTING.md", ROOT / "examples/README.md", ROOT / "results/README.md"]
PAGES += sorted((ROOT / "docs").rglob("*.md"))
# Pages that are made when the site is built.
GENERATED = {f"reference/{name}.md" for name in ("cli", "recipes", "configuration", "glossary")}
_LINK = re.compile(r"!?\[(?P<text>[^\]]*)\]\((?P<target>[^)\s]+)\)(?:\{[^}]*\})?")


def _prose(text: str) -> str:
    """The text without code blocks, comments and the targets of links."""
    text = re.sub(
        r"<!--.*?-->", "", re.sub(r"```.*?```", "", text, flags=re.DOTALL), flags=re.DOTALL
    )
    return _LINK.sub(lambda link: link["text"], text)


def sentences(text: str) -> list[str]:
    """The sentences of a page. A cell of a table, a heading and a point of a list end with one."""
    found = []
    for paragraph in re.split(r"\n\s*\n|\n(?=[-#|>] ?)|\|", _prose(text)):
        flat = " ".join(paragraph.strip("#->| \n").split())
        found += [part for part in re.split(r"(?<=[.!?:])[*_)]*\s+", flat) if part]
    return found


def heading_anchors(text: str) -> set[str]:
    """The anchors that GitHub and the site give to the headings of a page."""
    titles = re.findall(r"^#+ (.+)$", re.sub(r"```.*?```", "", text, flags=re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def test_the_readme_has_at_most_900_words() -> None:
    assert len(README.read_text().split()) <= 900


@pytest.mark.parametrize("page", [README, QUICK_START], ids=lambda page: page.name)
def test_no_sentence_has_more_than_30_words(page: Path) -> None:
    long = [s for s in sentences(page.read_text()) if len(s.split()) > 30]
    assert not long


@pytest.mark.parametrize("page", [README, QUICK_START], ids=lambda page: page.name)
@pytest.mark.parametrize("term", ["stream", "base", "logits", "signal", "graft", "guide", "probe"])
def test_a_term_is_in_bold_where_it_is_first_used_and_defined(page: Path, term: str) -> None:
    prose = re.sub(r"`[^`]*`", "", _prose(page.read_text()))
    prose = re.sub(r"^#.*$", "", prose, flags=re.MULTILINE)
    first = re.search(rf"(\*\*(?:A )?)?\b{term}s?\b", prose, re.IGNORECASE)
    assert first is None or first[1]


def test_the_first_page_does_not_speak_of_test_models() -> None:
    assert not re.search("chat-7m|synthetic world", README.read_text())


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_to_a_file_and_a_heading(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    dead = []
    for link in _LINK.finditer(text):
        address, _, anchor = link["target"].partition("#")
        if re.match(r"\w+:", address):
            continue
        target = (page.parent / address).resolve() if address else page
        if (
            target.is_relative_to(ROOT / "docs")
            and str(target.relative_to(ROOT / "docs")) in GENERATED
        ):
            continue
        known = target.exists() and (not anchor or anchor in heading_anchors(target.read_text()))
        dead += [] if known else [link["target"]]
    assert not dead


def test_no_page_names_an_address_of_the_project_on_a_code_host() -> None:
    named = [str(p) for p in PAGES if re.search(r"github\.com/[\w-]*otter", p.read_text())]
    assert not named
