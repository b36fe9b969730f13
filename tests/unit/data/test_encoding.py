"""Tokens of the tiny character tokenizer: ids are readable, lengths are those of the text."""

from typing import Any

import pytest

from otter_cli.core.errors import OtterError
from otter_cli.data.encoding import Encoder, Truncation

BOS, EOS = 1, 2


def test_bos_as_the_tokenizer_does_and_eos_on_request(tiny_tokenizer: Any) -> None:
    plain = tiny_tokenizer("hi").input_ids
    assert plain[0] == BOS
    assert Encoder(tiny_tokenizer, 9)(["hi"]).ids == [[*plain, EOS]]
    assert Encoder(tiny_tokenizer, 9, eos=False)(["hi"]).ids == [plain]


def test_an_eos_that_the_tokenizer_adds_itself_is_not_doubled(tiny_tokenizer: Any) -> None:
    ids = Encoder(tiny_tokenizer, 9)(["hi</s>"]).ids[0]
    assert ids.count(EOS) == 1
    assert ids == Encoder(tiny_tokenizer, 9)(["hi"]).ids[0]


@pytest.mark.parametrize(("keep", "kept"), [("end", "fghij"), ("start", "abcde")])
def test_a_long_text_keeps_one_end_and_both_marks(
    tiny_tokenizer: Any, keep: Any, kept: str
) -> None:
    encoded = Encoder(tiny_tokenizer, 7, keep=keep)(["abcdefghij", "abcde"])
    first, second = encoded.ids
    assert first[0] == BOS
    assert first[-1] == EOS
    assert tiny_tokenizer.decode(first[1:-1]) == kept
    assert tiny_tokenizer.decode(second[1:-1]) == "abcde"
    assert encoded.truncation == Truncation(cut=1, texts=2, max_length=7)


@pytest.mark.parametrize("eos", [True, False])
def test_exactly_full_is_not_cut(tiny_tokenizer: Any, eos: bool) -> None:
    text = "abcdef"
    full = len(text) + 1 + eos
    assert Encoder(tiny_tokenizer, full, eos=eos)([text]).truncation.cut == 0
    over = Encoder(tiny_tokenizer, full - 1, eos=eos)([text])
    assert over.truncation.cut == 1
    assert len(over.ids[0]) == full - 1


def test_cuts_add_up_and_are_refused_above_the_share_allowed() -> None:
    cut = Truncation(4, 100, 96) + Truncation(6, 100, 96)
    assert (cut.share, cut.texts) == (0.05, 200)
    cut.check()
    cut.check(allowed=0.05)
    with pytest.raises(OtterError, match=r"10 of 200 texts \(5.0 %\) are longer than 96") as raised:
        cut.check(allowed=0.04)
    assert "allow more truncation" in raised.value.hint
    Truncation(0, 0, 96).check(allowed=0)


def test_a_text_without_tokens_is_refused(tiny_tokenizer: Any) -> None:
    with pytest.raises(OtterError, match="chosen text 2 has no tokens: 'é'"):
        Encoder(tiny_tokenizer, 9)(["a", "é"], "chosen text")


def test_settings_that_cannot_work_are_refused(tiny_tokenizer: Any) -> None:
    class NoEos:
        eos_token_id = None

    with pytest.raises(OtterError, match="no EOS"):
        Encoder(NoEos(), 9)
    Encoder(NoEos(), 9, eos=False)
    with pytest.raises(OtterError, match="max_length is 2"):
        Encoder(tiny_tokenizer, 2)
