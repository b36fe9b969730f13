"""The documentation names files, modules and sections that exist."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = ["docs/architecture.md", "docs/method.md", "docs/serving.md", "CONTRIBUTING.md"]
SECTIONS = re.findall(r"^#+ (.+)$", (ROOT / "docs/method.md").read_text(), re.MULTILINE)


def _exists(name: str) -> bool:
    """In the repository, or anywhere below the package for a name that a table shortens."""
    return (ROOT / name).exists() or any(ROOT.glob(f"otter_cli/**/{name.rstrip('/')}"))


@pytest.mark.parametrize("page", PAGES)
def test_every_file_that_a_page_names_exists(page: str) -> None:
    text = (ROOT / page).read_text()
    names = re.findall(r"`([\w./]+(?:/|\.py|\.md|\.cpp))`", text)
    names += [
        f"{module.replace('.', '/')}.py"
        for module in re.findall(r"\botter_cli(?:\.\w+)+(?=:)", text)
    ]
    absent = [name for name in names if not _exists(name)]
    assert not absent


def test_docstrings_and_comments_cite_sections_of_the_method_page_that_exist() -> None:
    unknown = []
    for path in [*ROOT.glob("otter_cli/**/*"), *ROOT.glob("tests/**/*.py")]:
        if path.suffix not in (".py",) or path == Path(__file__):
            continue
        text = re.sub(r"\s*\n\s*(?://|#)?\s*", " ", path.read_text())
        unknown += [
            f"{path.relative_to(ROOT)}: {title}"
            for title in re.findall(r'docs/method\.md, "([^"]+)"', text)
            if title not in SECTIONS
        ]
        unknown += [f"{path.relative_to(ROOT)}: METHOD" for _ in re.findall(r"\bMETHOD\b", text)]
    assert not unknown


def test_the_page_of_the_architecture_is_short() -> None:
    assert len((ROOT / "docs/architecture.md").read_text().splitlines()) <= 120
