"""`otter explain`, and the objectives on the help page of `otter train`."""

import json

from otter_cli.core.glossary import glossary
from tests.conftest import Otter


def test_alone_it_lists_every_term_within_100_columns(otter_here: Otter) -> None:
    shown = otter_here("explain")
    assert shown.returncode == 0
    for term in glossary():
        assert f"\n{term.name} " in shown.stdout
    assert max(map(len, shown.stdout.splitlines())) <= 100


def test_a_term_has_its_text_and_its_page(otter_here: Otter) -> None:
    shown = otter_here("explain", "mapping", "F1").stdout
    words = " ".join(shown.split())
    mapping, f1 = (next(t for t in glossary() if t.name == name) for name in ("mapping", "f1"))
    assert mapping.text in words and f1.text in words
    assert 'docs/method.md, "Objectives"' in words
    data = json.loads(otter_here("explain", "mapping", "--json").stdout)
    assert data["terms"][0]["text"] == mapping.text


def test_an_unknown_term_is_an_error_with_the_nearest(otter_here: Otter) -> None:
    done = otter_here("explain", "maping")
    assert done.returncode == 2 and "did you mean 'mapping', 'margin'?" in done.stderr


def test_the_page_of_train_names_the_objectives_with_a_line_each(otter_here: Otter) -> None:
    page = " ".join(otter_here("train", "--help").stdout.split())
    for term in glossary():
        if term.group in ("objectives", "baselines"):
            assert f"{term.name}: {term.first_sentence}" in page
