"""Poison values, and that poisoned tensors are restored."""

import math
from pathlib import Path

import pytest
import torch

from otter_cli.model.otter import OtterForCausalLM
from otter_cli.verification.bits import same_bits
from otter_cli.verification.poison import POISON_VALUES, poison_number, poisoned
from tests.support.grafts import random_graft


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_every_value_is_what_it_is_called(dtype: torch.dtype) -> None:
    held = {
        value: torch.full((1,), poison_number(value, dtype), dtype=dtype).item()
        for value in POISON_VALUES
    }
    assert math.isnan(held["nan"])
    assert (held["inf"], held["-inf"]) == (math.inf, -math.inf)
    assert 0 < held["denormal"] < torch.finfo(dtype).smallest_normal
    assert held["1e30"] == (math.inf if dtype == torch.float16 else pytest.approx(1e30, rel=1e-2))


def test_a_tensor_is_filled_and_put_back_after_an_error_too(
    tiny_llama: Path, tmp_path: Path
) -> None:
    model = OtterForCausalLM.from_pretrained(random_graft(tiny_llama, tmp_path / "g", hidden=8))
    tensors = [tensor for _, tensor in model.inserted_parameters()]
    before = [tensor.detach().clone() for tensor in tensors]
    for tensor in tensors:
        with poisoned(tensor, "nan"):
            assert [bool(t.isnan().any()) for t in tensors] == [t is tensor for t in tensors]
        with pytest.raises(ZeroDivisionError), poisoned(tensor, "inf"):
            raise ZeroDivisionError
    assert all(map(same_bits, tensors, before))


def test_poison_shows_in_the_stream_itself(tiny_llama: Path, tmp_path: Path) -> None:
    """Otherwise equal logits would prove nothing. Fused attention on a CPU takes NaN queries for
    zeros, which is why tensors are poisoned in turn under eager attention where there is any."""
    folder = random_graft(tiny_llama, tmp_path / "g", hidden=8)
    model = OtterForCausalLM.from_pretrained(folder, attn_implementation="eager")
    tokens = torch.arange(3, 9).view(1, 6)
    for name, tensor in model.inserted_parameters():
        with torch.no_grad(), poisoned(tensor, "nan"):
            out = model(tokens)
        states = [*out.inserted_state.values(), *out.signals.values()]
        assert any(bool(state.isnan().any()) for state in states), name
