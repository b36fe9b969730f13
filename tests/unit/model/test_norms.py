"""Norms of the stream against their formulas, written out."""

from typing import Any, Literal

import pytest
import torch
from torch import Tensor

from otter_cli.families.shape import base_shape
from otter_cli.graft.config import InsertionConfig, resolve_config
from otter_cli.model.stream import HeadNorm, PostNorm, StreamNorm

SIZES = {"num_hidden_layers": 1, "num_attention_heads": 4, "vocab_size": 97}
LLAMA = {"model_type": "llama", "hidden_size": 32, "intermediate_size": 48, **SIZES}
PHI = {"model_type": "phi", "hidden_size": 32, "intermediate_size": 48, **SIZES}


def _config(config: dict[str, Any], norm: Literal["own", "base"]) -> InsertionConfig:
    return resolve_config(base_shape(config), hidden=8, heads=1, ffn=8, norm=norm)


def _filled(module: Any) -> Any:
    generator = torch.Generator().manual_seed(0)
    for parameter in module.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return module


def _random(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize("config", [LLAMA, PHI], ids=["rms", "layer"])
@pytest.mark.parametrize("norm", ["own", "base"])
def test_before_a_branch(config: dict[str, Any], norm: Literal["own", "base"]) -> None:
    shape, z, h = base_shape(config), _random(2, 3, 8), 5 + _random(2, 3, 32)
    module = _filled(StreamNorm(_config(config, norm), shape))
    got = module(z, h)
    if norm == "own":
        expected = z / (z.square().mean(-1, keepdim=True) + shape.norm_eps).sqrt()
    elif config is LLAMA:
        expected = z / (h.square().mean(-1, keepdim=True) + shape.norm_eps).sqrt()
    else:
        variance = h.var(-1, keepdim=True, unbiased=False)
        expected = (z - h.mean(-1, keepdim=True)) / (variance + shape.norm_eps).sqrt()
    expected = expected * module.weight + (module.bias if config is PHI else 0)
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


def test_after_a_branch_the_base_s_own_statistic_divides() -> None:
    shape, addition, branch = base_shape(LLAMA), _random(2, 3, 8), 5 + _random(2, 3, 32)
    module = _filled(PostNorm(_config(LLAMA, "own"), shape))
    rms = (branch.square().mean(-1, keepdim=True) + shape.norm_eps).sqrt()
    torch.testing.assert_close(module(addition, branch), addition / rms * module.weight)


def test_heads_are_normed_one_by_one_or_jointly() -> None:
    flat = _random(2, 3, 4 * 8)
    apart, jointly = _filled(HeadNorm(8, 1e-6)), _filled(HeadNorm(32, 1e-6))
    heads = flat.unflatten(-1, (4, 8))
    expected = heads / (heads.square().mean(-1, keepdim=True) + 1e-6).sqrt() * apart.weight
    torch.testing.assert_close(apart(flat), expected.flatten(-2))
    expected = flat / (flat.square().mean(-1, keepdim=True) + 1e-6).sqrt() * jointly.weight
    torch.testing.assert_close(jointly(flat), expected)
