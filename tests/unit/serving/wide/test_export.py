"""The wide layout against the additive one: same signals to rounding, zero blocks exactly zero."""

from pathlib import Path
from typing import Any

import pytest
import torch

from otter_cli.checkpoint.folder import Checkpoint
from otter_cli.core.errors import OtterError
from otter_cli.families.registry import FAMILIES, WIDE_CLASS_NAMES, wide_layout_refusal
from otter_cli.model.otter import OtterForCausalLM
from otter_cli.model.wide import load_wide
from otter_cli.serving.wide.export import write_wide
from tests.support.families import CASES, Case
from tests.support.grafts import random_graft

BY_NAME = {case.family: case for case in CASES}
FORMS: list[dict[str, Any]] = [
    {"heads": 1},
    {"heads": 2},
    {"heads": 4, "kv_heads": 1},
    {"heads": 4, "kv": "base"},
    {"heads": 2, "kv": "base", "kv_heads": 1, "kv_start": 1},
    {"heads": 2, "norm": "base"},
    {"heads": 0},
    {"heads": 2, "layers": (1,)},
    {"heads": 4, "kv": "base", "layers": (0, 2)},
    {"heads": 2, "embedding": "zeros", "ffn": 0},
]


def _load(folder: Path) -> Any:
    return load_wide(folder, dtype=torch.float64)


@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("family", WIDE_CLASS_NAMES)
def test_stock_transformers_reads_the_same_logits_and_signals(
    tiny_checkpoint: Any, tmp_path: Path, family: str, form: dict[str, Any]
) -> None:
    base = BY_NAME[family].write(tiny_checkpoint, tied=family != "mistral")
    graft = random_graft(base, tmp_path / "graft", **{"hidden": 8, "ffn": 16, **form})
    write_wide(graft, tmp_path / "wide")
    additive = OtterForCausalLM.from_pretrained(graft, dtype=torch.float64)
    tokens = torch.randint(3, 97, (2, 20), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected, got = additive(tokens), _load(tmp_path / "wide")(tokens)
    torch.testing.assert_close(got.logits, expected.logits, rtol=1e-5, atol=1e-5)
    assert set(got.signals) == set(expected.signals)
    for name, signal in expected.signals.items():
        torch.testing.assert_close(got.signals[name], signal, rtol=1e-5, atol=1e-5)


def test_a_cached_step_goes_on_from_the_prefix(tiny_llama: Path, tmp_path: Path) -> None:
    graft = random_graft(tiny_llama, tmp_path / "graft", hidden=8, heads=2, ffn=16)
    write_wide(graft, tmp_path / "wide")
    model = _load(tmp_path / "wide")
    tokens = torch.arange(3, 23)[None]
    with torch.no_grad():
        whole = model(tokens)
        prefix = model(tokens[:, :12], use_cache=True)
        rest = model(tokens[:, 12:], past_key_values=prefix.past_key_values)
    torch.testing.assert_close(rest.signals["reward"], whole.signals["reward"][:, 12:])


def test_nothing_of_z_feeds_h(tiny_llama: Path, tmp_path: Path) -> None:
    """The blocks that would let z into h are zero by their bits."""
    graft = random_graft(tiny_llama, tmp_path / "graft", hidden=8, heads=2, ffn=16)
    plan = write_wide(graft, tmp_path / "wide").plan
    wide, shape = Checkpoint.open(tmp_path / "wide"), plan.shape
    d, heads = shape.hidden, shape.heads * shape.head_dim
    at = "model.layers.1"
    corners = {
        f"{at}.self_attn.q_proj.weight": (slice(heads), slice(d, None)),
        f"{at}.self_attn.o_proj.weight": (slice(d), slice(heads, None)),
        f"{at}.mlp.gate_proj.weight": (slice(shape.ffn), slice(d, None)),
        f"{at}.mlp.down_proj.weight": (slice(d), slice(shape.ffn, None)),
        "lm_head.weight": (slice(None), slice(d, None)),
    }
    for name, corner in corners.items():
        block = wide.read(name)[corner]
        assert block.size and not block.view("uint32").any(), name


def test_bfloat16_stays_bfloat16_and_the_base_s_part_is_copied(
    tiny_checkpoint: Any, tmp_path: Path
) -> None:
    base = tiny_checkpoint("llama", dtype="bfloat16")
    graft = random_graft(base, tmp_path / "graft", hidden=8, heads=2, ffn=16)
    plan = write_wide(graft, tmp_path / "wide").plan
    wide, plain = Checkpoint.open(tmp_path / "wide"), Checkpoint.open(base)
    name = "model.layers.0.mlp.up_proj.weight"
    assert wide.tensors[name].dtype == "BF16"
    part = wide.read(name)[: plan.shape.ffn, : plan.shape.hidden]
    assert (part == plain.read(name)).all()


# Words of the reason, for every family that the layout does not hold.
def test_every_family_is_held_or_has_its_reason() -> None:
    assert [case.family for case in CASES if not case.not_wide] == [*WIDE_CLASS_NAMES]
    assert [name for name in FAMILIES if not wide_layout_refusal(FAMILIES[name])] == [
        *WIDE_CLASS_NAMES
    ]


@pytest.mark.parametrize("case", [c for c in CASES if c.not_wide], ids=str)
def test_other_families_are_refused_by_name_with_the_reason(
    tiny_checkpoint: Any, tmp_path: Path, case: Case
) -> None:
    graft = random_graft(case.write(tiny_checkpoint), tmp_path / "graft", hidden=8)
    with pytest.raises(OtterError, match=f"cannot hold {case}: .*{case.not_wide}") as caught:
        write_wide(graft, tmp_path / "wide")
    assert "export --to adapter" in caught.value.hint and not (tmp_path / "wide").exists()


def test_what_the_layout_cannot_hold_is_refused(tiny_llama: Path, tmp_path: Path) -> None:
    probe = random_graft(tiny_llama, tmp_path / "a", hidden=0)
    with pytest.raises(OtterError, match="hidden units"):
        write_wide(probe, tmp_path / "wide")
    other = random_graft(tiny_llama, tmp_path / "b", hidden=8, signals=("action-reward",))
    with pytest.raises(OtterError, match="'action-reward'.* not vocabulary"):
        write_wide(other, tmp_path / "wide")
    cell = random_graft(tiny_llama, tmp_path / "c", hidden=8, signals=("future:2",))
    with pytest.raises(OtterError, match="'future'.* no cell that follows drafts"):
        write_wide(cell, tmp_path / "wide")
    assert not (tmp_path / "wide").exists()
