"""Marked characters of texts: what files may hold, and how tokens are labelled and counted."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from otter_cli.core.errors import OtterError
from otter_cli.data.encoding import Encoder
from otter_cli.data.spans import MarkedDataset, MarkedText, character_counts, read_marked

TEXT = "you are  an idiot, really"
IDIOT = frozenset(range(12, 17))


def _file(folder: Path, *rows: dict[str, Any]) -> Path:
    path = folder / "marked.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize(
    "spans", [[[12, 17]], [12, 13, 14, 15, 16], "[[12, 17]]", "[12, 13, 14, 15, 16]"]
)
def test_spans_and_characters_are_read_alike(tmp_path: Path, spans: Any) -> None:
    path = _file(tmp_path, {"text": TEXT, "spans": spans}, {"text": TEXT, "spans": []})
    rows = read_marked(path, text="text", spans=["spans"])
    assert rows == [MarkedText(TEXT, (IDIOT,)), MarkedText(TEXT, (frozenset(),))]


def test_a_prompt_before_the_text_moves_the_spans(tmp_path: Path) -> None:
    values = {"q": "Hm. ", "text": TEXT, "spans": [[12, 17]]}
    row, _ = read_marked(_file(tmp_path, values, values), text="text", spans=["spans"], prompt="q")
    assert {row.text[i] for i in row.characters[0]} == set("idiot")
    assert len(row.characters[0]) == 5


@pytest.mark.parametrize(
    ("spans", "message"),
    [
        ("toxic", "holds no spans"),
        ([[1, 2, 3]], "holds no spans"),
        ([[1, 2], 3], "holds no spans"),
        ([True], "holds no spans"),
        ([1.5], "holds no spans"),
        (None, "holds no spans"),
        ([[5, 5]], "marks characters 5 to 5"),
        ([[20, 26]], "marks characters 20 to 26, and the text has 25"),
        ([-1], "marks characters -1 to 0"),
    ],
)
def test_what_is_no_span_is_refused_with_its_line(tmp_path: Path, spans: Any, message: str) -> None:
    path = _file(tmp_path, {"text": TEXT, "spans": []}, {"text": TEXT, "spans": spans})
    with pytest.raises(OtterError, match=message) as caught:
        read_marked(path, text="text", spans=["spans"])
    assert "line 2" in str(caught.value)


def _brute_force(text: str, spans: list[tuple[int, int]], predicted: list[bool]) -> set[int]:
    """The union of predicted tokens, without white space at the ends of a run of tokens."""
    characters: set[int] = set()
    run: list[int] = []
    held = [i for i, (start, end) in enumerate(spans) if text[start:end].strip()]
    for position in range(len(held) + 1):
        if position < len(held) and predicted[held[position]]:
            run.append(held[position])
            continue
        if run:
            start, end = spans[run[0]][0], spans[run[-1]][1]
            while text[start].isspace():
                start += 1
            while text[end - 1].isspace():
                end -= 1
            characters |= set(range(start, end))
        run = []
    return characters


@given(data=st.data())
def test_counts_are_those_of_sets_of_characters(data: Any) -> None:
    """Words are tokens that begin with their white space, as byte-level tokenizers cut them."""
    words = data.draw(st.lists(st.from_regex(r"\A ?[a-z]{1,4}\Z"), min_size=1, max_size=8))
    text, spans = "".join(words), []
    for word in words:
        start = spans[-1][1] if spans else 0
        spans.append((start, start + len(word)))
    marked = frozenset(data.draw(st.sets(st.integers(0, len(text) - 1))))
    predicted = data.draw(st.lists(st.booleans(), min_size=len(words), max_size=len(words)))

    class WordEncoder:
        pad_id = 0

        def __call__(self, texts: Any) -> Any:
            from otter_cli.data.encoding import Encoded, Truncation

            ids = [list(range(1, len(words) + 1))]
            return Encoded(ids, Truncation(0, 1, 99), [len(words)])

        def token_spans(self, text: str, ids: Any) -> list[tuple[int, int]]:
            return spans

    encoder: Any = WordEncoder()
    batch = MarkedDataset([MarkedText(text, (marked,))], encoder).batch([0])
    choice = torch.tensor(predicted)[None, :, None]
    total, correct = character_counts(batch, choice)
    expected = _brute_force(text, spans, predicted)
    assert (int(total), int(correct)) == (len(expected), len(expected & marked))
    assert batch.labels is not None
    assert int(batch.labels) == len(marked)
    assert batch.token_labels is not None
    for label, (start, end) in zip(batch.token_labels[0, :, 0].tolist(), spans, strict=True):
        held = [i for i in range(start, end) if not text[i].isspace()]
        assert label == float(bool(marked & set(held)))


@pytest.mark.parametrize("eos", [True, False])
@pytest.mark.parametrize("keep", ["start", "end"])
@pytest.mark.parametrize("max_length", [8, 64])
def test_tokens_name_their_characters_after_a_cut(
    tiny_tokenizer: Any, eos: bool, keep: Any, max_length: int
) -> None:
    encoder = Encoder(tiny_tokenizer, max_length, eos=eos, keep=keep)
    encoded = encoder([TEXT])
    spans = encoder.token_spans(TEXT, encoded.ids[0])
    assert len(spans) == len(encoded.ids[0])
    special = set(tiny_tokenizer.all_special_ids)
    for token, (start, end) in zip(encoded.ids[0], spans, strict=True):
        if token in special:
            assert start == end
        else:
            assert tiny_tokenizer.decode([token]).strip() == TEXT[start:end].strip()
