"""The gold rule reads tone from words, so every sentence must hold the words of its own tone."""

import string

import pytest

from otter_cli.demo import world
from otter_cli.demo.world import is_polite, is_rude

REPLIES = {
    "opening": world.OPENINGS,
    "answer": world.ANSWERS,
    "refusal": world.REFUSALS,
    "remark": world.REMARKS,
}
PLAIN = world.CLOSINGS + world.SCENES + world.REQUESTS["warm"] + world.REQUESTS["curt"]


@pytest.mark.parametrize("kind", REPLIES)
def test_every_reply_reads_as_the_tone_it_is_filed_under(kind: str) -> None:
    for tone, templates in REPLIES[kind].items():
        for template in templates:
            assert is_rude(template) == (tone == "rude"), template
            assert is_polite(template) == (tone == "polite"), template


@pytest.mark.parametrize("template", PLAIN)
def test_what_is_said_in_every_exchange_has_no_tone(template: str) -> None:
    assert not is_rude(template) and not is_polite(template)


def test_refusals_and_nothing_else_read_as_refusals() -> None:
    for kind, by_tone in REPLIES.items():
        for template in (template for templates in by_tone.values() for template in templates):
            refuses = any(marker in template.lower() for marker in world.REFUSAL_MARKERS)
            assert refuses == (kind == "refusal"), template


@pytest.mark.parametrize("kind", REPLIES)
def test_each_tone_has_several_sentences_and_no_sentence_two_tones(kind: str) -> None:
    templates = [template for group in REPLIES[kind].values() for template in group]
    assert len(set(templates)) == len(templates)
    assert all(len(group) >= 3 for group in REPLIES[kind].values())


def test_each_answer_is_one_sentence_that_names_the_thing() -> None:
    for by_tone in (world.ANSWERS, world.REFUSALS):
        for template in (template for group in by_tone.values() for template in group):
            fields = [name for _, name, _, _ in string.Formatter().parse(template) if name]
            assert fields == ["thing"] and template.count(".") == 1
