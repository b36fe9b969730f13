"""The sizes of an insertion: defaults, limits, layers."""

from typing import Any

import pytest

from otter_cli.core.errors import OtterError
from otter_cli.families.shape import BaseShape, base_shape
from otter_cli.graft.config import parse_layers, resolve_config
from otter_cli.signals.config import parse_signal


@pytest.fixture
def shape() -> BaseShape:
    return base_shape(
        {
            "model_type": "llama",
            "hidden_size": 512,
            "intermediate_size": 1024,
            "num_hidden_layers": 6,
            "num_attention_heads": 16,
            "num_key_value_heads": 4,
            "vocab_size": 1000,
        }
    )


def test_the_default_is_a_sixteenth_of_each_width(shape: BaseShape) -> None:
    config = resolve_config(shape)
    assert (config.hidden, config.heads, config.ffn) == (32, 1, 64)
    assert config.layers == (0, 1, 2, 3, 4, 5)


def test_heads_only_inserts_nothing_else(shape: BaseShape) -> None:
    config = resolve_config(shape, hidden=0, heads=4, ffn=8)
    assert (config.heads, config.ffn, config.layers) == (0, 0, ())


@pytest.mark.parametrize(
    ("heads", "read"), [(1, 1), (2, 2), (3, 3), (4, 4), (6, 3), (7, 1), (8, 4)]
)
def test_the_base_s_key_value_heads_divide_the_inserted_ones(
    shape: BaseShape, heads: int, read: int
) -> None:
    assert resolve_config(shape, heads=heads, kv="base").kv_heads == read


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"hidden": 513}, "--hidden 513"),
        ({"hidden": -1}, "--hidden -1"),
        ({"heads": 17}, "--heads 17"),
        ({"ffn": 2000}, "--ffn 2000"),
        ({"heads": 3, "kv_heads": 2}, "multiple"),
        ({"kv": "base", "heads": 4, "kv_heads": 4, "kv_start": 1}, "from 1 on"),
        ({"kv": "theirs"}, "--kv theirs"),
        ({"init": "zeros"}, "--init zeros"),
        ({"dtype": "I8"}, "--dtype I8"),
        ({"layers": (0, 6)}, "layers"),
        ({"layers": (1, 1)}, "layers"),
        ({"signals": (parse_signal("reward"), parse_signal("reward"))}, "'reward'"),
    ],
)
def test_what_does_not_fit_is_refused(
    shape: BaseShape, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(OtterError) as caught:
        resolve_config(shape, **options)
    assert words in caught.value.what


@pytest.mark.parametrize(
    ("text", "layers"),
    [
        ("all", (0, 1, 2, 3, 4, 5)),
        ("2:4", (2, 3)),
        (":2", (0, 1)),
        ("4:", (4, 5)),
        ("last:2", (4, 5)),
        ("first:3", (0, 1, 2)),
        ("1,3", (1, 3)),
    ],
)
def test_layers_as_they_are_written(text: str, layers: tuple[int, ...]) -> None:
    assert parse_layers(text, 6) == layers


@pytest.mark.parametrize("text", ["x", "1-3", "last:", "", "1,,2"])
def test_unreadable_layers(text: str) -> None:
    with pytest.raises(OtterError, match="--layers"):
        parse_layers(text, 6)
