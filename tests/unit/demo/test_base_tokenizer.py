from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from otter_cli.demo.train_base import BOS, EOS, PAD, VOCABULARY, save_tokenizer, train_tokenizer
from otter_cli.demo.world import World

TRAINED = train_tokenizer(World(0).texts(300))


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=80))
@example("a special token spelt out: </s>")
def test_any_text_comes_back_as_it_went_in(text: str) -> None:
    ids = TRAINED.encode(text, add_special_tokens=False).ids
    assert TRAINED.decode(ids, skip_special_tokens=False) == text


def test_the_world_takes_few_tokens() -> None:
    text = World(1).texts(1)[0]
    assert len(TRAINED.encode(text).ids) < len(text) / 2


def test_special_tokens_have_their_ids_and_encoding_begins_with_bos() -> None:
    assert [TRAINED.token_to_id(token) for token in ("<s>", "</s>", "<pad>")] == [BOS, EOS, PAD]
    ids = TRAINED.encode("Good day.").ids
    assert ids[0] == BOS and EOS not in ids
    assert TRAINED.get_vocab_size() == VOCABULARY


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    save_tokenizer(TRAINED, folder, 256)
    return folder


def test_transformers_reads_the_same_tokens(saved: Path) -> None:
    stock, text = AutoTokenizer.from_pretrained(saved), World(2).texts(1)[0]
    assert stock(text).input_ids == TRAINED.encode(text).ids
    assert (stock.bos_token_id, stock.eos_token_id, stock.pad_token_id) == (BOS, EOS, PAD)
    assert stock.model_max_length == 256


def test_the_saved_file_is_the_tokenizer(saved: Path) -> None:
    again = Tokenizer.from_file(str(saved / "tokenizer.json"))
    assert again.to_str() == TRAINED.to_str()
