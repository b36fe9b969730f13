"""Every family of the table: logits, poison and stripped bytes. torch.equal only.

Over the same table to a tolerance, in tests/unit: the mirror, gradients and cached signals in
families/, the wide layout in serving/.
"""

from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from otter_cli.graft.surgery import strip
from otter_cli.model.otter import OtterForCausalLM
from tests.support.families import CASES, Case
from tests.support.grafts import random_graft

SHARDED: dict[str, Any] = {"dtype": "bfloat16", "tied": True, "max_shard": "20kB"}


def _form(narrow: int, tied: int, sharded: int) -> tuple[str, dict[str, Any], str]:
    """Every layout; attentions and keys so that each meets every value of all the others."""
    layout = {
        "dtype": ("float32", "bfloat16")[narrow],
        "tied": bool(tied),
        **({"max_shard": "20kB"} if sharded else {}),
    }
    return ("eager", "sdpa")[narrow ^ tied ^ sharded], layout, ("own", "base")[narrow ^ tied]


RUNS = [_form(*bits) for bits in product((0, 1), repeat=3)]
POISON = (float("nan"), float("inf"), 1e30)


def _runs() -> list[Any]:
    return [
        pytest.param(case, "eager" if case.eager_only else attention, layout, kv)
        for case in CASES
        for attention, layout, kv in RUNS
    ]


@pytest.mark.parametrize(("case", "attention", "layout", "kv"), _runs())
def test_logits_stay_as_they_are(
    tiny_checkpoint: Any,
    tmp_path: Path,
    case: Case,
    attention: str,
    layout: dict[str, Any],
    kv: str,
) -> None:
    base = case.write(tiny_checkpoint, **layout)
    form = {"heads": 2, "kv": kv} if case.full else {}
    folder = random_graft(base, tmp_path / "g", hidden=8, ffn=16, signals=("reward",), **form)
    plain = AutoModelForCausalLM.from_pretrained(base, attn_implementation=attention).eval()
    model = OtterForCausalLM.from_pretrained(folder, attn_implementation=attention)
    assert model.base.dtype == plain.dtype == getattr(torch, layout["dtype"])

    tokens, mask = torch.arange(3, 63).view(4, 15), torch.ones(4, 15, dtype=torch.long)
    for row in range(4):
        mask[row, : 2 * row] = 0
    with torch.no_grad():
        expected = plain(tokens, attention_mask=mask, use_cache=True)
        got = model(tokens, attention_mask=mask, use_cache=True)
        assert torch.equal(got.logits, expected.logits)
        # At equal shapes the head is the same operation: scale, cap and bias included.
        assert torch.equal(model.lm_head(got.base_state), expected.logits)
        assert got.signals["reward"].isfinite().all()
        theirs, ours = expected.past_key_values, got.past_key_values
        for _ in range(2):
            mask = torch.cat([mask, torch.ones(4, 1, dtype=torch.long)], 1)
            expected = plain(tokens[:, :1], attention_mask=mask, past_key_values=theirs)
            got = model(tokens[:, :1], attention_mask=mask, past_key_values=ours)
            assert torch.equal(got.logits, expected.logits)
        expected = plain(tokens).logits
        for value in POISON:
            for _, parameter in model.inserted_parameters():
                parameter.fill_(value)
            assert torch.equal(model(tokens).logits, expected)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_stripping_gives_the_same_bytes(tiny_checkpoint: Any, tmp_path: Path, case: Case) -> None:
    base = case.write(tiny_checkpoint, **SHARDED)
    form = {"heads": 2} if case.full else {}
    folder = random_graft(base, tmp_path / "g", hidden=8, ffn=16, layers=(0, 2), **form)
    strip(folder, tmp_path / "stripped")
    files = sorted(path.name for path in base.iterdir())
    assert files == sorted(path.name for path in (tmp_path / "stripped").iterdir())
    for name in files:
        assert (tmp_path / "stripped" / name).read_bytes() == (base / name).read_bytes()
