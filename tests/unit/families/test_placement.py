"""Which z a branch reads, and how its output is added: parallel, sequential, normed after."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from otter_cli.model.otter import OtterForCausalLM
from tests.support.families import CASES
from tests.support.fused_products import products
from tests.support.grafts import random_graft

BY_NAME = {case.family: case for case in CASES}
TOKENS = torch.arange(3, 15)[None]


def _model(tiny_checkpoint: Any, out: Path, family: str, **config: Any) -> OtterForCausalLM:
    base = BY_NAME[family].write(tiny_checkpoint, **config)
    folder = random_graft(base, out, hidden=8, heads=2, ffn=16, signals=("reward",))
    return OtterForCausalLM.from_pretrained(folder)


@pytest.mark.parametrize(
    ("family", "config", "parallel"),
    [
        ("llama", {}, False),
        ("cohere2", {}, True),
        ("phi", {}, True),
        ("gpt_neox", {"use_parallel_residual": True}, True),
        ("gpt_neox", {"use_parallel_residual": False}, False),
    ],
)
def test_a_parallel_ffn_reads_z_where_the_layer_begins(
    tiny_checkpoint: Any, tmp_path: Path, family: str, config: dict[str, Any], parallel: bool
) -> None:
    model = _model(tiny_checkpoint, tmp_path / "g", family, **config)
    layer: Any = model.insertions["main"].layers["1"]
    read: dict[str, Tensor] = {}
    for kind in ("attention", "ffn"):
        getattr(layer, kind).norm.register_forward_pre_hook(
            lambda _, given, kind=kind: read.update({kind: given[0]})
        )
    with torch.no_grad():
        model(TOKENS)
    assert torch.equal(read["attention"], read["ffn"]) == parallel


@pytest.mark.parametrize("family", ["gemma3_text", "olmo2"])
def test_a_norm_after_the_branch_is_applied_to_all_that_it_adds(
    tiny_checkpoint: Any, tmp_path: Path, family: str
) -> None:
    model = _model(tiny_checkpoint, tmp_path / "g", family)
    layers: Any = model.insertions["main"].layers
    of_base = model.capture.layers[1].get_submodule(model.shape.family.ffn.post_norm)
    seen: dict[str, Tensor] = {}
    for name, module in (
        ("before", layers["1"].ffn.norm),
        ("after", layers["2"].attention.norm),
        ("branch", of_base),
    ):
        module.register_forward_pre_hook(
            lambda _, given, name=name: seen.update({name: given[0]}), prepend=True
        )
    with torch.no_grad(), products(layers["1"].ffn.down) as down:
        model(TOKENS)
    (added,) = (product.out for product in down)
    branch = seen["branch"].flatten(0, 1)  # rows, as the stream's own
    rms = (branch.square().mean(-1, keepdim=True) + model.shape.norm_eps).sqrt()
    expected = seen["before"] + added / rms * layers["1"].ffn.post_norm.weight
    assert (seen["after"] - seen["before"]).abs().max() > 1e-3
    torch.testing.assert_close(seen["after"], expected)
