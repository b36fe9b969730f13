"""Unsupported families are refused by name, with the reason and the nearest supported one."""

from pathlib import Path
from typing import Any

import pytest

from otter_cli.core.errors import OtterError
from otter_cli.families.entries import REFUSED_FAMILIES
from otter_cli.families.registry import FAMILIES, find_family
from otter_cli.families.shape import base_shape
from otter_cli.graft.config import resolve_config
from tests.support.families import CASES, FULL, Case
from tests.support.grafts import plan_for

FFN_ONLY = [case for case in CASES if not case.full]


@pytest.mark.parametrize("name", REFUSED_FAMILIES)
def test_a_known_family_is_refused_with_reason_and_way_out(name: str) -> None:
    reason, instead = REFUSED_FAMILIES[name]
    with pytest.raises(OtterError, match=f"{name!r} is not supported") as caught:
        find_family({"model_type": name})
    assert reason in caught.value.what and instead in caught.value.hint
    words = instead.replace(",", " ").split()
    assert any(word in FAMILIES for word in words)


def test_no_family_is_both_supported_and_refused() -> None:
    assert not FAMILIES.keys() & REFUSED_FAMILIES.keys()


def test_every_family_is_in_the_table_of_tests() -> None:
    assert [case.family for case in CASES] == list(FAMILIES)
    assert {case.family for case in FULL} == {n for n, f in FAMILIES.items() if not f.ffn_only}


@pytest.mark.parametrize("case", FFN_ONLY, ids=str)
def test_inserted_heads_are_refused_where_there_is_no_place_for_them(
    tiny_checkpoint: Any, case: Case
) -> None:
    base: Path = case.write(tiny_checkpoint)
    with pytest.raises(OtterError, match=f"{case.family} takes no inserted heads") as caught:
        plan_for(base, hidden=8, heads=1, ffn=8)
    assert FAMILIES[case.family].ffn_only in caught.value.what
    plan = plan_for(base, hidden=8, ffn=8)
    assert plan.config.heads == 0 and plan.cache_bytes_per_token() == 0


def test_a_probe_needs_no_heads_and_goes_anywhere() -> None:
    config = {
        "model_type": "deepseek_v3",
        "hidden_size": 32,
        "moe_intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "vocab_size": 9,
    }
    assert resolve_config(base_shape(config), hidden=0).heads == 0
