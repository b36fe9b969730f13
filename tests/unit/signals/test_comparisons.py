"""Comparisons of a name with a number, as options and requests write them."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from otter_cli.core.errors import OtterError
from otter_cli.signals.comparisons import Comparison, parse_comparison

NAMES = st.from_regex(r"[a-z][a-z0-9_-]{0,31}([./][a-z][a-z0-9_-]{0,31})?", fullmatch=True)
SIGNS = st.sampled_from([">", ">=", "<", "<="])
NUMBERS = st.floats(allow_nan=False, allow_infinity=False)
SPACES = st.sampled_from(["", " ", "  ", "\t"])


@given(NAMES, SIGNS, NUMBERS, st.lists(SPACES, min_size=4, max_size=4))
def test_what_was_written_is_read_with_any_spaces(
    name: str, sign: str, number: float, spaces: list[str]
) -> None:
    a, b, c, d = spaces
    read = parse_comparison(f"{a}{name}{b}{sign}{c}{number!r}{d}")
    assert (read.name, read.sign, read.number) == (name, sign, number)
    assert parse_comparison(str(read)) == read


@given(st.text(max_size=30))
def test_any_other_text_is_refused_by_our_error(text: str) -> None:
    try:
        read = parse_comparison(text)
    except OtterError:
        return
    assert math.isfinite(read.number) and read.name and read.sign in text


@given(SIGNS, NUMBERS, NUMBERS)
def test_a_sign_means_what_python_means(sign: str, value: float, number: float) -> None:
    holds = Comparison("x", sign, number).holds(value)
    assert holds == eval(f"{value!r} {sign} {number!r}")


@pytest.mark.parametrize(
    "text",
    ["", "toxicity", ">0.9", "toxicity>", "toxicity=0.9", "toxicity==0.9", "toxicity=>0.9",
     "toxicity>>0.9", "toxicity>0.9>1", "a b>1", "toxicity>nan", "toxicity<inf", "toxicity>x"],
)  # fmt: skip
def test_what_is_no_comparison(text: str) -> None:
    with pytest.raises(OtterError, match="is no bound"):
        parse_comparison(text)


@pytest.mark.parametrize("name", ["tone.rude", "tone/rude"])
def test_a_label_follows_a_dot_or_a_slash(name: str) -> None:
    read = parse_comparison(f"{name}>0.5")
    assert (read.signal, read.label) == ("tone", "rude")
    assert parse_comparison("tone>0.5").label is None
