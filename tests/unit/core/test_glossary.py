"""The glossary: every term that a recipe or a report needs, two short sentences each."""

import re
from pathlib import Path

import pytest

from otter_cli.core.errors import OtterError
from otter_cli.core.glossary import Term, explain_hint, find_term, glossary
from otter_cli.training.objectives import OBJECTIVES
from otter_cli.training.recipe import BASELINE_NAMES, recipe_from_values

TERMS = glossary()


def names(group: str) -> set[str]:
    return {term.name for term in TERMS if term.group == group}


def test_every_objective_baseline_and_kind_of_signal_is_a_term() -> None:
    from otter_cli.signals.config import KIND_ALIASES, SIGNAL_KINDS

    assert names("objectives") == {kind.model_fields["objective"].default for kind in OBJECTIVES}
    assert set(BASELINE_NAMES) <= names("baselines") | names("objectives")
    assert names("kinds of signals") == set(SIGNAL_KINDS)
    assert all(find_term(alias).name == kind for alias, kind in KIND_ALIASES.items())


def test_every_row_of_a_benchmark_s_table_is_explained() -> None:
    from otter_cli.benchmarks.metrics.estimates import METRICS

    assert all(find_term(metric.label) for metric in METRICS.values())


@pytest.mark.parametrize("term", TERMS, ids=[term.name for term in TERMS])
def test_a_term_has_two_short_sentences_and_a_page_that_exists(
    term: Term, repository: Path
) -> None:
    sentences = re.split(r"(?<=[.!?]) (?=[A-Z0-9`])", term.text)
    assert len(sentences) == 2, sentences
    assert all(len(sentence.split()) <= 30 for sentence in sentences)
    page = (repository / "docs" / term.page).read_text()
    assert re.search(rf"^#+ {re.escape(term.section)}$", page, re.M)


def test_no_name_means_two_terms() -> None:
    every = [name.lower() for term in TERMS for name in {term.name, *term.also}]
    assert len({*every}) >= len(every) - sum(
        name.lower() == term.name.lower() for term in TERMS for name in term.also
    )


@pytest.mark.parametrize("text", ["held_out", "held-out", "HELD OUT"])
def test_a_term_is_found_in_every_spelling(text: str) -> None:
    assert find_term(text).name == "held_out"


def test_an_unknown_term_brings_the_nearest() -> None:
    with pytest.raises(OtterError, match="no 'bradley-tery'") as caught:
        find_term("bradley-tery")
    assert caught.value.hint.startswith("did you mean 'bradley-terry'?")
    with pytest.raises(OtterError) as caught:
        find_term("xyzzy")
    assert caught.value.hint == "`otter explain` lists all terms"


def test_a_hint_names_the_first_known_term_only() -> None:
    assert explain_hint("nonsense", "mapping") == "`otter explain mapping` says what it means"
    assert explain_hint("nonsense") == ""


SOUND = {
    "objective": "pointwise",
    "held_out": 0.1,
    "train": {"path": "x.csv", "mapping": {"ham": 0}},
}


@pytest.mark.parametrize(
    ("changes", "what", "hint"),
    [
        ({"held_out": 3}, "held_out: it must be less than 1", "`otter explain held_out`"),
        ({"heldout": 0.1}, "unknown key 'heldout'", "`otter explain held_out`"),
        ({"objective": "bradly-terry"}, "there is no objective 'bradly-terry'", "'bradley-terry'?"),
        ({"positions": "all"}, "positions: it must be 'last' or", "`otter explain positions`"),
        (
            {"train": {"path": "x", "mapping": 3}},
            "mapping: it must be a mapping",
            "explain mapping",
        ),
    ],
)
def test_a_recipe_s_error_points_to_the_term(changes: dict, what: str, hint: str) -> None:
    values = {"steps": 5, "signals": {"reward": {**SOUND, **changes}}}
    with pytest.raises(OtterError) as caught:
        recipe_from_values(values, (), "r.yaml")
    assert what in caught.value.what and hint in caught.value.hint


def test_a_section_without_an_objective_says_so() -> None:
    section = {key: value for key, value in SOUND.items() if key != "objective"}
    with pytest.raises(OtterError, match="signals.reward: objective is missing") as caught:
        recipe_from_values({"steps": 5, "signals": {"reward": section}}, (), "r.yaml")
    assert "`otter explain`" in caught.value.hint
