from typing import Any

import pytest
import torch

from otter_cli.core.errors import OtterError
from otter_cli.data.datasets import BlockDataset, LabelledDataset, PairDataset, pad_batch
from otter_cli.data.encoding import Encoder
from otter_cli.data.pairs import PreferencePair
from otter_cli.data.texts import LabelledText

BOS, EOS = 1, 2


def text_of(tokenizer: Any, batch: Any, row: int) -> str:
    real = batch.input_ids[row][batch.attention_mask[row].bool()]
    return tokenizer.decode(real, skip_special_tokens=True)


def test_padding_goes_to_the_right() -> None:
    batch = pad_batch([[5, 6, 7], [8], [9, 4]], pad_id=0)
    assert batch.input_ids.tolist() == [[5, 6, 7], [8, 0, 0], [9, 4, 0]]
    assert batch.attention_mask.tolist() == [[1, 1, 1], [1, 0, 0], [1, 1, 0]]
    assert batch.last.tolist() == [2, 0, 1]
    assert batch.tokens == 6


def test_a_text_that_holds_the_padding_id_is_not_masked() -> None:
    batch = pad_batch([[0, 0], [5, 0, 0]], pad_id=0)
    assert batch.attention_mask.tolist() == [[1, 1, 0], [1, 1, 1]]


def test_pairs_come_chosen_first(tiny_tokenizer: Any) -> None:
    pairs = [
        PreferencePair("good one", "bad"),
        PreferencePair("b", "worse by far"),
        PreferencePair("c", "d"),
    ]
    data = PairDataset(pairs, Encoder(tiny_tokenizer, 32))
    assert data.lengths == [10, 14, 3]
    batch = data.batch([1, 0])
    texts = [text_of(tiny_tokenizer, batch, row) for row in range(4)]
    assert texts == ["b", "good one", "worse by far", "bad"]
    assert batch.input_ids.shape == (4, 14)
    assert batch.input_ids.gather(1, batch.last[:, None]).flatten().tolist() == [EOS] * 4


def test_pairs_count_the_cuts_of_both_sides(tiny_tokenizer: Any) -> None:
    pairs = [PreferencePair("x" * 20, "y" * 20), PreferencePair("x", "y" * 20)]
    truncation = PairDataset(pairs, Encoder(tiny_tokenizer, 10)).truncation
    assert (truncation.cut, truncation.texts) == (3, 4)


def test_labels_stay_with_their_texts(tiny_tokenizer: Any) -> None:
    rows = [LabelledText("a", (0.0, 1.0)), LabelledText("bb", (0.5, 0.0))]
    batch = LabelledDataset(rows, Encoder(tiny_tokenizer, 32)).batch([1, 0])
    assert batch.labels is not None
    assert batch.labels.tolist() == [[0.5, 0.0], [0.0, 1.0]]
    assert batch.labels.dtype == torch.float32
    assert [text_of(tiny_tokenizer, batch, row) for row in (0, 1)] == ["bb", "a"]


def test_blocks_are_the_texts_end_to_end(tiny_tokenizer: Any) -> None:
    blocks = BlockDataset(["abc", "defghij", "k"], tiny_tokenizer, block=4)
    expected = [
        t for text in ("abc", "defghij", "k") for t in [*tiny_tokenizer(text).input_ids, EOS]
    ]
    assert blocks.ids.flatten().tolist() == expected[:16]
    assert (len(blocks.lengths), blocks.left_over) == (4, 1)
    batch = blocks.batch([2, 0])
    assert batch.input_ids.tolist() == [expected[8:12], expected[0:4]]
    assert batch.attention_mask.all()
    assert batch.last.tolist() == [3, 3]


def test_blocks_without_eos(tiny_tokenizer: Any) -> None:
    assert EOS not in BlockDataset(["abc", "def"], tiny_tokenizer, block=4, eos=False).ids


def test_too_little_text_for_a_block_is_refused(tiny_tokenizer: Any) -> None:
    with pytest.raises(OtterError, match="1 texts have 5 tokens, less than one block of 8"):
        BlockDataset(["abc"], tiny_tokenizer, block=8)


def test_a_batch_moves_with_all_it_has() -> None:
    batch = pad_batch([[1, 2]], 0).to("meta")
    assert {batch.input_ids.device.type, batch.last.device.type} == {"meta"}
    assert batch.labels is None


def test_padding_changes_no_prediction_of_a_real_model(
    tiny_llama: Any, tiny_tokenizer: Any
) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_llama)
    data = PairDataset(
        [PreferencePair("a longer text", "b"), PreferencePair("c", "dd")],
        Encoder(tiny_tokenizer, 32),
    )
    batch = data.batch([0, 1])
    with torch.no_grad():
        logits = model(batch.input_ids, attention_mask=batch.attention_mask).logits
        alone = model(torch.tensor([data.rejected[0]])).logits
    torch.testing.assert_close(logits[2, batch.last[2]], alone[0, -1])
