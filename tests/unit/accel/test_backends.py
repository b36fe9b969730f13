"""Every backend computes what the reference, plain linears layer by layer, computes."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from otter_cli.model.backend import StreamBackend, TorchBackend
from otter_cli.model.otter import OtterForCausalLM
from tests.support.families import CASES, Case
from tests.support.grafts import random_graft

TOKENS = torch.randint(3, 23, (2, 12), generator=torch.Generator().manual_seed(0))


def _by_reference(model: OtterForCausalLM) -> None:
    capture = model.capture
    for number, (name, insertion) in enumerate(capture.insertions.items(), 1):
        backends: list[StreamBackend] = [
            TorchBackend(insertion, model.shape, capture.depth, number)
        ]
        capture.backends[name] = backends


def _rewards(model: OtterForCausalLM) -> Tensor:
    """Of a prefill and of steps of one token, the first without a cache layer of its own."""
    cache, rewards = model.new_cache(), []
    with torch.no_grad():
        for part in TOKENS[:, :9], *TOKENS[:, 9:].split(1, 1):
            rewards.append(model(part, past_key_values=cache).signals["reward"])
    return torch.cat(rewards, 1)


def _gradients(model: OtterForCausalLM) -> dict[str, Tensor | None]:
    at = torch.tensor([0, 1]), torch.tensor([11, 5])
    loss = model(TOKENS, logits=False, at=at).signals["reward"].square().sum()
    names, parameters = zip(*model.inserted_parameters(), strict=True)
    found = torch.autograd.grad(loss, parameters, allow_unused=True)
    return dict(zip(names, found, strict=True))


@pytest.mark.parametrize("norm", ["own", "base"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_signals_and_gradients_are_the_reference_s(
    tiny_checkpoint: Any, tmp_path: Path, case: Case, norm: str
) -> None:
    """In the double precision of `Case.graft`: by packed weights."""
    model = case.graft(tiny_checkpoint, random_graft, tmp_path / "g", norm=norm)
    rewards, gradients = _rewards(model), _gradients(model)
    _by_reference(model)
    torch.testing.assert_close(rewards, _rewards(model), rtol=1e-5, atol=1e-5)
    for name, expected in _gradients(model).items():
        if expected is None:
            assert gradients[name] is None, name
        else:
            torch.testing.assert_close(gradients[name], expected, rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize("kv", ["own", "base"])
def test_native_code_gives_the_reference_s_signals(
    tiny_llama: Path, tmp_path: Path, kv: str
) -> None:
    folder = random_graft(tiny_llama, tmp_path / "g", kv=kv, hidden=20, heads=2, ffn=10)
    model = OtterForCausalLM.from_pretrained(folder)
    rewards = _rewards(model)
    _by_reference(model)
    torch.testing.assert_close(rewards, _rewards(model), rtol=1e-4, atol=2e-5)
