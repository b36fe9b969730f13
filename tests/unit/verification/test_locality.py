"""Locality holds for streams that read the base's keys, and planted faults break it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from otter_cli.model.otter import OtterForCausalLM
from otter_cli.verification.grid import Case
from otter_cli.verification.poison import check_locality
from tests.support.grafts import random_graft

CASE = Case("prefill", 10)


def model_of(base: Path, out: Path, kv: str, hidden: int = 8) -> OtterForCausalLM:
    form = {"heads": 2, "ffn": 16} if hidden else {"heads": 0, "ffn": 0}
    return OtterForCausalLM.from_pretrained(random_graft(base, out, hidden=hidden, kv=kv, **form))


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_a_stream_on_the_base_s_keys_is_local(
    tiny_llama: Path, tmp_path: Path, attention: str
) -> None:
    model = model_of(tiny_llama, tmp_path / "g", "base")
    (found,) = check_locality(model, Case("prefill", 10, attention=attention))
    assert found.failure is None and found.compared == 11 and found.insertion == "main"


def test_own_keys_and_probes_claim_nothing(tiny_llama: Path, tmp_path: Path) -> None:
    assert not check_locality(model_of(tiny_llama, tmp_path / "own", "own"), CASE)
    assert not check_locality(model_of(tiny_llama, tmp_path / "probe", "base", hidden=0), CASE)


def test_a_stream_that_looks_back_is_caught(tiny_llama: Path, tmp_path: Path) -> None:
    model = model_of(tiny_llama, tmp_path / "g", "base")
    norm = model.insertions["main"].get_submodule("norm")

    def look_back(module: object, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return output + 1e-3 * torch.roll(output, 1, dims=1)

    norm.register_forward_hook(look_back)
    (found,) = check_locality(model, CASE)
    assert found.failure is not None and "moved by nan in the stream at 0" in found.failure


def test_a_stream_that_must_be_on_from_the_start_is_caught(
    tiny_llama: Path, tmp_path: Path
) -> None:
    model = model_of(tiny_llama, tmp_path / "g", "base")
    calls = [0]

    def count(module: object, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        # Keeps state between steps, as a cache of its own would.
        calls[0] += int(output.shape[1] == 1)
        return output * (1 + 1e-3 * calls[0])

    model.insertions["main"].get_submodule("norm").register_forward_hook(count)
    (found,) = check_locality(model, CASE)
    assert found.failure is not None and "switched on late" in found.failure


def test_the_stream_starts_as_before_afterwards(tiny_llama: Path, tmp_path: Path) -> None:
    model = model_of(tiny_llama, tmp_path / "g", "base")
    tokens = torch.arange(3, 11).view(1, 8)
    with torch.no_grad():
        before = model(tokens).inserted_state["main"]
        check_locality(model, CASE)
        assert torch.equal(model(tokens).inserted_state["main"], before)
