"""The plan: shapes as in docs/method.md, and a price that equals the size of the file."""

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from otter_cli.checkpoint.folder import Checkpoint
from otter_cli.graft.config import resolve_config
from otter_cli.graft.plan import Plan, evenly_spaced, head_rows, plan_insertion
from otter_cli.graft.price import price
from otter_cli.graft.storage import TENSORS_FILE
from otter_cli.signals.config import parse_signal
from tests.support.grafts import graft_for, plan_for


def test_shapes_are_those_of_the_method(tiny_llama: Path) -> None:
    plan = plan_for(tiny_llama, hidden=8, heads=2, ffn=16, signals=("reward",))
    shape, got = plan.shape, {slot.name: slot.shape for slot in plan.tensors}
    d, c, wide = shape.hidden, shape.head_dim, shape.heads * shape.head_dim
    at = "otter.main.layers.1"
    expected = {
        "otter.main.embedding.weight": (shape.vocab, 8),
        f"{at}.attention.query.h.weight": (2 * c, d),
        f"{at}.attention.query.z.weight": (2 * c, 8),
        f"{at}.attention.key.h.weight": (2 * c, d),
        f"{at}.attention.value.z.weight": (2 * c, 8),
        f"{at}.attention.out.h.weight": (8, wide),
        f"{at}.attention.out.z.weight": (8, 2 * c),
        f"{at}.ffn.gate.h.weight": (16, d),
        f"{at}.ffn.up.z.weight": (16, 8),
        f"{at}.ffn.down.h.weight": (8, shape.ffn),
        f"{at}.ffn.down.z.weight": (8, 16),
        "otter.main.norm.weight": (8,),
        "otter.main.signals.reward.base": (1, d),
        "otter.main.signals.reward.inserted": (1, 8),
    }
    assert {name: got[name] for name in expected} == expected


def test_the_base_s_keys_and_values_need_neither_tensors_nor_cache(tiny_llama: Path) -> None:
    own = plan_for(tiny_llama, hidden=8, heads=2, ffn=8)
    base = plan_for(tiny_llama, hidden=8, heads=2, ffn=8, kv="base")
    assert any(".key." in slot.name for slot in own.tensors)
    assert not any(".key." in slot.name or ".value." in slot.name for slot in base.tensors)
    assert base.cache_bytes_per_token() == 0
    assert own.cache_bytes_per_token() == 2 * 2 * own.shape.head_dim * own.shape.layers * 4


@pytest.mark.parametrize("kv", ["own", "base"])
def test_copied_query_heads_read_the_key_value_heads_they_had(tiny_llama: Path, kv: str) -> None:
    plan = plan_for(tiny_llama, hidden=8, heads=4, kv_heads=2, ffn=8, kv=kv)
    of_inserted = np.repeat(plan.kv_units, 4 // 2)
    assert (np.asarray(plan.head_units) // plan.shape.queries_per_kv_head == of_inserted).all()


@pytest.mark.parametrize("dtype", ["F32", "BF16"])
def test_the_price_is_what_the_file_holds(tiny_llama: Path, tmp_path: Path, dtype: str) -> None:
    plan = plan_for(tiny_llama, hidden=8, heads=2, ffn=8, dtype=dtype)
    cost = price(plan, Checkpoint.open(tiny_llama))
    assert cost.inserted_parameters == sum(cost.by_part.values()) == plan.parameters
    out = graft_for(tiny_llama, tmp_path / "out", hidden=8, heads=2, ffn=8, dtype=dtype)
    if dtype == "F32":
        tensors = load_file(out / TENSORS_FILE)
        assert sum(t.size for t in tensors.values()) == cost.inserted_parameters
        assert sum(t.nbytes for t in tensors.values()) == cost.inserted_bytes
    header = (out / TENSORS_FILE).stat().st_size - cost.inserted_bytes
    assert 0 < header < 200 * len(plan.tensors)


def test_a_plan_is_made_from_a_folder_and_the_words_of_the_command_line(tiny_llama: Path) -> None:
    base, sizes = Checkpoint.open(tiny_llama), {"hidden": 8, "heads": 2, "ffn": 16}
    plan = plan_insertion(base, ["reward", "draft=future:2"], layers="last:1", **sizes)
    last = plan.shape.layers - 1
    config = resolve_config(
        plan.shape,
        layers=(last,),
        signals=(parse_signal("reward"), parse_signal("draft=future:2")),
        **sizes,
    )
    assert plan == Plan(config, plan.shape)
    assert plan_insertion(base).config == resolve_config(plan.shape)


def test_spread_is_even_and_distinct() -> None:
    assert evenly_spaced(3, 9) == [0, 3, 6]
    assert evenly_spaced(0, 9) == []
    for count in range(1, 12):
        assert len(set(evenly_spaced(count, 11))) == min(count, 11)


def test_head_rows_are_whole_heads() -> None:
    assert head_rows([2, 0], 3) == [6, 7, 8, 0, 1, 2]
