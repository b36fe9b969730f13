"""Sizes for several ranks: refused exactly where the engine's layout would pad with zeros."""

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from otter_cli.core.errors import OtterError
from otter_cli.families.shape import BaseShape, base_shape
from otter_cli.graft.config import InsertionConfig, check_tensor_parallel, resolve_config
from otter_cli.serving.vllm.rank_layout import EMPTY, RankLayout
from tests.conftest import Otter


def shape(kv_heads: int) -> BaseShape:
    sizes = {"num_hidden_layers": 1, "hidden_size": 128, "num_attention_heads": 16}
    more = {"num_key_value_heads": kv_heads, "intermediate_size": 96, "vocab_size": 32}
    return base_shape({"model_type": "llama", **sizes, **more})


def filled(config: InsertionConfig, base: BaseShape, ranks: int) -> bool:
    parts = [RankLayout(config, base, ranks, rank) for rank in range(ranks)]
    return any(EMPTY in places for p in parts for places in (p.heads, p.kv_heads, p.units))


@given(
    kv=st.sampled_from(["base", "own"]),
    kv_heads=st.sampled_from([1, 2, 4, 8]),
    share=st.integers(1, 3),
    read=st.integers(1, 8),
    ranks=st.sampled_from([2, 4, 8]),
    ffn=st.integers(0, 20),
)
def test_refused_exactly_where_zeros_would_fill_up_and_the_hint_fits(
    kv: str, kv_heads: int, share: int, read: int, ranks: int, ffn: int
) -> None:
    base, read = shape(kv_heads), min(read, kv_heads)
    heads = read * min(share, base.heads // read)
    config = resolve_config(base, hidden=8, kv=kv, heads=heads, kv_heads=read, ffn=ffn)
    try:
        check_tensor_parallel(config, base, ranks)
    except OtterError as error:
        assert filled(config, base, ranks)
        sizes = {n.replace("-", "_"): int(v) for n, v in re.findall(r"--(\S+) (\d+)", error.hint)}
        fitting = resolve_config(base, hidden=8, kv=kv, **sizes)
        check_tensor_parallel(fitting, base, ranks)
        assert not filled(fitting, base, ranks)
    else:
        assert not filled(config, base, ranks)


@pytest.mark.parametrize("ranks", [0, -2, 3])
def test_ranks_that_do_not_share_the_base_are_refused(ranks: int) -> None:
    with pytest.raises(OtterError, match="16 heads and 96 FFN units"):
        check_tensor_parallel(resolve_config(shape(4), hidden=8), shape(4), ranks)


def test_the_command_says_what_would_fit(otter: Otter, tiny_llama: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    sizes = ["--heads", 1, "--ffn", 9, "--kv", "base", "--tensor-parallel", 2]
    refused = otter("graft", tiny_llama, out, *sizes)
    assert refused.returncode == 2 and not out.exists()
    assert "--heads 2 --kv-heads 2 --ffn 10" in refused.stderr
    sizes[1], sizes[3] = 2, 10
    assert otter("graft", tiny_llama, out, *sizes).returncode == 0
