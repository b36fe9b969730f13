"""The site builds without a network, with strict links, and shows what the code has."""

import re
import socket
from collections.abc import Iterator
from html import unescape
from pathlib import Path

import pytest

from otter_cli.cli.recipe_files import recipe_files
from otter_cli.cli.verbs import VERBS
from otter_cli.core.glossary import glossary
from otter_cli.training.objectives import OBJECTIVES
from otter_cli.training.recipe import BASELINE_NAMES, Recipe

pytest.importorskip("material", reason="mkdocs-material is not installed")
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The built site. Opening a connection fails the build."""
    from mkdocs.commands.build import build
    from mkdocs.config import load_config

    def refuse(*_: object) -> None:
        raise AssertionError("the build of the site opens a connection")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", refuse)
        patch.setattr(socket, "getaddrinfo", refuse)
        patch.chdir(ROOT)
        folder = tmp_path_factory.mktemp("site")
        config = load_config(str(ROOT / "mkdocs.yml"), site_dir=str(folder), strict=True)
        config.plugins.on_startup(command="build", dirty=False)
        build(config)
        yield folder


def _text(page: Path) -> str:
    return unescape(re.sub(r"<[^>]+>", "", page.read_text()))


def test_no_page_fetches_anything_from_elsewhere(site: Path) -> None:
    loads = r"<(?:link|script|img|iframe|source)\b[^>]*?(?:href|src)=[\"']?(?:https?:)?//[^>]*>"
    fetched = [
        match for page in site.rglob("*.html") for match in re.findall(loads, page.read_text())
    ]
    imported = r"(?:url\(|@import\s*)[\"']?(?:https?:)?//"
    styles = [str(css) for css in site.rglob("*.css") if re.search(imported, css.read_text())]
    assert not fetched and not styles


def test_the_build_leaves_scripts_and_data_of_docs_out(site: Path) -> None:
    assert not list(site.rglob("*.py"))
    assert not list((site / "images").glob("*.json"))


def test_every_verb_and_its_options_are_on_the_page_of_the_command_line(site: Path) -> None:
    text = _text(site / "reference/cli.html")
    assert [verb for verb in VERBS if f"otter {verb}" not in text] == []
    assert all(option in text for option in ("--tensor-parallel", "--read-every", "--task-head"))


def test_every_recipe_and_every_key_is_on_its_page(site: Path) -> None:
    recipes = _text(site / "reference/recipes.html")
    assert [recipe.name for recipe in recipe_files() if recipe.name not in recipes] == []
    keys = _text(site / "reference/configuration.html")
    names = {name for model in (Recipe, *OBJECTIVES) for name in model.model_fields}
    assert [name for name in names if name not in keys] == []
    # A comment above a field in the source explains the key.
    assert "Training stops after patience evaluations without a better one" in keys.replace("`", "")


def test_every_term_of_the_glossary_is_on_its_page(site: Path) -> None:
    text = " ".join(_text(site / "reference/glossary.html").split())
    assert [term.name for term in glossary() if term.name not in text] == []
    assert " ".join(glossary()[0].text.replace("`", "").split()) in text


def test_the_page_about_probes_names_every_baseline() -> None:
    page = (ROOT / "docs/how-to/probes.md").read_text()
    assert [name for name in BASELINE_NAMES if f"| `{name}` |" not in page] == []


def test_the_python_page_has_signatures_and_docstrings(site: Path) -> None:
    text = " ".join(_text(site / "reference/python.html").split())
    assert "num_return_sequences" in text
    assert "Continues text, messages (by the chat template), token ids" in text


def test_the_formulas_of_the_method_are_drawn(site: Path) -> None:
    html = (site / "method.html").read_text()
    formulas = re.findall(
        r"\$[^$\n]+\$", re.sub(r"`[^`\n]*`", "", (ROOT / "docs/method.md").read_text())
    )
    assert html.count('class="formula"') >= len(formulas) > 300
    assert "FORMULA" not in html
    drawn = set(re.findall(r'href="#(glyph-[\w-]+)"', html))
    assert drawn <= set(re.findall(r'id="(glyph-[\w-]+)"', html))


def test_the_changelog_is_the_file_of_the_repository(site: Path) -> None:
    first = re.search(r"^- (\w[\w ,]+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert first and first[1] in _text(site / "changelog.html")
