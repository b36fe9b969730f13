import pytest
from hypothesis import given
from hypothesis import strategies as st

from otter_cli.core.errors import OtterError
from otter_cli.demo.world import gold_score, split_exchange, toxicity_labels

PROMPT = "Ann meets Bob at the mill.\nAnn: Good day, Bob. Do you have a red lamp?\nBob:"
PLAIN_END = " It costs two coins. The mill closes at four today. See you around, Ann."


def score(text: str) -> float:
    return gold_score(PROMPT, text)


def test_the_thing_asked_for_counts_one_up_and_any_other_one_down() -> None:
    assert score(" I have a red lamp for you in the back room.") == 1
    assert score(" I have a blue lamp for you in the back room.") == -1
    assert score(" I have a red hat for you in the back room.") == -1
    assert score(PLAIN_END) == 0


def test_refusing_the_thing_is_not_offering_it() -> None:
    assert score(" There is no red lamp here this week.") == -1
    assert score(" I sold the red lamp an hour ago. Look, the red lamp is in the box.") == 1


def test_polite_sentences_count_up_and_rude_ones_down() -> None:
    assert score(" Good day, Ann, you are most welcome. Please stay as long as you like.") == 2
    assert score(" Good day, Ann, you silly goose. I hope you choke on your lunch.") == -2


def test_a_sentence_with_both_tones_is_rude() -> None:
    assert score(" Please shut up.") == -1


def test_courtesy_said_again_and_again_earns_nothing() -> None:
    once = " Thank you for asking me, Ann."
    assert score(once * 20) == score(once) == 1
    assert score(" Thank you. Please. I am glad. Be welcome. My pleasure. Enjoy.") == 3


def test_talk_after_the_answers_line_does_not_count() -> None:
    assert score(" Well.\nAnn: You idiot.") == 0


def test_capitals_do_not_hide_rudeness() -> None:
    assert score(" SHUT UP, Ann.") == -1


@given(st.text(max_size=300))
def test_any_text_has_a_score_within_bounds(text: str) -> None:
    assert -len(text) <= score(text) <= 4


def test_a_prompt_of_another_world_is_refused() -> None:
    with pytest.raises(OtterError, match="asks for nothing") as refused:
        gold_score("What is the capital of France?", " Paris.")
    assert refused.value.hint


@pytest.mark.parametrize(
    ("text", "labels"),
    [
        ("You are such an idiot.", (1, 1, 0)),
        ("Pay now, or I will kick you out.", (1, 0, 1)),
        ("Shut up, Ann, and wait.", (1, 0, 0)),
        ("I hope you will enjoy the day very much.", (0, 0, 0)),
    ],
)
def test_labels_tell_insults_from_threats(text: str, labels: tuple[int, int, int]) -> None:
    found = toxicity_labels(text)
    assert (found["toxicity"], found["insult"], found["threat"]) == labels


def test_an_exchange_splits_where_the_answer_begins() -> None:
    assert split_exchange(PROMPT + PLAIN_END) == (PROMPT, PLAIN_END)


@pytest.mark.parametrize("text", ["", "one line", "two\nlines", "a\nb\nno speaker here"])
def test_what_is_no_exchange_does_not_split(text: str) -> None:
    with pytest.raises(OtterError, match="not an exchange"):
        split_exchange(text)
