"""Attention sinks (gpt-oss): each inserted head has its own, in every attention function."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface, eager_mask
from transformers.models.gpt_oss.modeling_gpt_oss import eager_attention_forward

from otter_cli.model.otter import OtterForCausalLM
from tests.support.families import CASES
from tests.support.grafts import graft_for


def test_every_kernel_gets_a_sink_for_every_head(tiny_checkpoint: Any, tmp_path: Path) -> None:
    """The eager function reads the module's sinks, fused functions read the argument `s_aux`."""
    seen: list[tuple[int, Tensor, Tensor]] = []

    def kernel(module: Any, query: Tensor, *rest: Any, s_aux: Tensor, **named: Any) -> Any:
        seen.append((query.shape[1], module.sinks, s_aux))
        return eager_attention_forward(module, query, *rest, **named)

    AttentionInterface.register("otter_test_sinks", kernel)
    AttentionMaskInterface.register("otter_test_sinks", eager_mask)
    case = next(case for case in CASES if case.family == "gpt_oss")
    folder = graft_for(case.write(tiny_checkpoint), tmp_path / "g", hidden=8, heads=2, ffn=16)
    model = OtterForCausalLM.from_pretrained(folder, attn_implementation="eager")
    model.base.set_attn_implementation("otter_test_sinks")
    with torch.no_grad():
        model(torch.arange(3, 23)[None])
    # The stream may run after the base.
    assert sorted(heads for heads, _, _ in seen) == sorted([4, 2] * model.shape.layers)
    assert all(len(of_module) == len(s_aux) == heads for heads, of_module, s_aux in seen)
    assert all(torch.equal(of_module, s_aux) for _, of_module, s_aux in seen)
