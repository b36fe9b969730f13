"""Copied initial values mirror the base in every family: z, u, inserted heads and units."""

from pathlib import Path
from typing import Any

import pytest
import torch

from otter_cli.graft.plan import Plan
from otter_cli.model.otter import OtterForCausalLM
from tests.support.families import CASES, FULL, Case
from tests.support.fused_products import products
from tests.support.grafts import graft_for

TOKENS = torch.arange(3, 23)[None]


def _model(case: Case, tiny_checkpoint: Any, out: Path, **form: Any) -> OtterForCausalLM:
    return case.graft(tiny_checkpoint, graft_for, out, **form)


def _plan(model: OtterForCausalLM) -> Plan:
    return Plan(model.manifest.insertions[0], model.shape)


def _layers(model: OtterForCausalLM) -> list[Any]:
    (insertion,) = model.insertions.values()
    return list(insertion.layers.values())


@pytest.mark.parametrize("case", CASES, ids=str)
def test_copy_begins_as_a_mirror_of_the_base(
    tiny_checkpoint: Any, tmp_path: Path, case: Case
) -> None:
    """docs/method.md, "Initial values": z = h[S] after every layer."""
    model, seen = _model(case, tiny_checkpoint, tmp_path / "g"), []
    units = _plan(model).units
    with torch.no_grad(), model.streaming() as record:
        for layer in model.capture.layers:
            layer.register_forward_hook(
                lambda _, __, h: seen.append((h[..., units], record.streams["main"]))
            )
        model.base(TOKENS)
    assert len(seen) == model.shape.layers
    for h, z in seen:
        assert h.std() > 0.1
        torch.testing.assert_close(z, h, rtol=0, atol=case.mirror)


@pytest.mark.parametrize("kv", ["own", "base"])
@pytest.mark.parametrize("case", FULL, ids=str)
def test_copied_heads_say_what_the_base_s_say(
    tiny_checkpoint: Any, tmp_path: Path, case: Case, kv: str
) -> None:
    """Rotation, scale, norms, biases, sinks and places in fused projections are all right."""
    heads = {"heads": 4, "kv_heads": 2} if case.jointly_normed else {"heads": 2}
    model = _model(case, tiny_checkpoint, tmp_path / "g", kv=kv, **heads)
    with torch.no_grad(), products(*(layer.attention.out for layer in _layers(model))) as seen:
        model(TOKENS)
    assert len(seen) == model.shape.layers
    for out in seen:
        by_head = out.x.unflatten(-1, (model.shape.heads, -1))  # [n, heads, head_dim]
        assert (by_head[:, 0] - by_head[:, 1]).abs().max() > 0.1
        # Attention functions compute the softmax in float32, and some rotations as well.
        of_base = by_head[..., _plan(model).head_units, :].flatten(-2)
        torch.testing.assert_close(out.u, of_base, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("case", [c for c in FULL if "experts" not in repr(c.config)], ids=str)
def test_copied_units_say_what_the_base_s_say(
    tiny_checkpoint: Any, tmp_path: Path, case: Case
) -> None:
    model = _model(case, tiny_checkpoint, tmp_path / "g")
    with torch.no_grad(), products(*(layer.ffn.down for layer in _layers(model))) as seen:
        model(TOKENS)
    assert len(seen) == model.shape.layers
    for down in seen:
        of_base = down.x[..., _plan(model).ffn_units]
        torch.testing.assert_close(down.u, of_base, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("case", [c for c in CASES if c.mirror < 1e-9], ids=str)
def test_under_the_base_s_norm_u_is_x(tiny_checkpoint: Any, tmp_path: Path, case: Case) -> None:
    """docs/method.md, "Initial values": with `norm: base`, u = x[S] too, for every norm."""
    model = _model(case, tiny_checkpoint, tmp_path / "g", norm="base")
    units = _plan(model).units
    with torch.no_grad(), products(*(layer.ffn.up for layer in _layers(model))) as seen:
        out = model(TOKENS)
    assert len(seen) == model.shape.layers
    # The base's norms round to float32 in any dtype.
    inputs = [(product.x, product.u) for product in seen]
    for x, u in [*inputs, (out.base_state, out.inserted_state["main"])]:
        torch.testing.assert_close(u, x[..., units], rtol=1e-5, atol=1e-5)
