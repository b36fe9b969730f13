"""Families: shapes read from config.json, and refusals by name."""

from typing import Any

import pytest

from otter_cli.core.errors import OtterError
from otter_cli.families.registry import find_family
from otter_cli.families.shape import base_shape

LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 172,
    "num_hidden_layers": 5,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "vocab_size": 512,
}


def test_head_size_may_differ_from_width_over_heads() -> None:
    assert base_shape(LLAMA).head_dim == 8
    assert base_shape({**LLAMA, "head_dim": 32}).head_dim == 32


def test_without_grouping_every_head_has_its_keys() -> None:
    config = {k: v for k, v in LLAMA.items() if k != "num_key_value_heads"}
    assert base_shape(config).kv_heads == 8


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"hidden_size": None}, "hidden_size"),
        ({"hidden_size": -1}, "hidden_size"),
        ({"hidden_size": 1 << 40}, "hidden_size"),
        ({"num_hidden_layers": "5"}, "num_hidden_layers"),
        ({"vocab_size": True}, "vocab_size"),
        ({"num_key_value_heads": 3}, "num_key_value_heads"),
    ],
)
def test_absurd_numbers_are_refused(change: dict[str, Any], words: str) -> None:
    with pytest.raises(OtterError, match=words):
        base_shape({**LLAMA, **change})


def test_an_unsupported_family_is_refused_by_name() -> None:
    with pytest.raises(OtterError, match="'bert'") as caught:
        find_family({"model_type": "bert"})
    assert "inspect --families" in caught.value.hint
    with pytest.raises(OtterError, match="'llamma'") as caught:
        find_family({"model_type": "llamma"})
    assert "llama" in caught.value.hint
    with pytest.raises(OtterError, match="no model_type"):
        find_family({})
