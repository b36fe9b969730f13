"""Attention without repeated keys and values gives the bits of transformers' own, which repeats
them: as a function, in the steps of a session, and not outside of one."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from otter_cli.decoding.session import DecodingSession
from otter_cli.model import attention_hook, stream
from otter_cli.model.grouped_attention import attention_to_run, unrepeated_keys
from otter_cli.model.otter import OtterForCausalLM
from tests.support.families import CASES, Case
from tests.support.grafts import random_graft


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("slots", [12, 70, 600, 2100])
@pytest.mark.parametrize(("rows", "tokens"), [(1, 2), (1, 10), (3, 10), (2, 33)])
@pytest.mark.parametrize("boolean", [False, True])
def test_its_result_is_that_of_repeated_keys(
    dtype: torch.dtype, slots: int, rows: int, tokens: int, boolean: bool
) -> None:
    generator = torch.Generator().manual_seed(slots + tokens)
    seen = torch.rand(rows, 1, tokens, slots, generator=generator) < 0.9
    seen[..., 0] = True
    mask = torch.zeros(seen.shape, dtype=dtype).masked_fill(~seen, torch.finfo(dtype).min)
    # A cache with spare slots behind its content, as sessions have it.
    key, value = torch.randn(2, rows, 2, slots + 9, 32, generator=generator).to(dtype)
    query = torch.randn(rows, tokens, 6, 32, generator=generator).to(dtype).transpose(1, 2)
    module: Any = SimpleNamespace(num_key_value_groups=3, is_causal=True)
    arguments = query, key[:, :, :slots], value[:, :, :slots], seen if boolean else mask
    expected, _ = sdpa_attention_forward(module, *arguments, scaling=0.2)
    with unrepeated_keys():
        got, _ = attention_to_run(sdpa_attention_forward)(module, *arguments, scaling=0.2)
    assert torch.equal(got, expected) and got.is_contiguous()


def _steps(model: Any) -> list[Tensor]:
    """Base and inserted states of candidates, a tree, and a chain of drafts, for ragged prompts."""
    session = DecodingSession(model)
    states = [session.prefill([[5, 9, 33, 40, 12], [7, 8]])]
    states.append(session.extend_candidates(torch.tensor([[3, 50, 17], [4, 51, 18]])))
    session.keep_candidate(torch.tensor([2, 0]))
    states.append(session.extend_tree(torch.tensor([[5, 6, 7], [8, 9, 10]]), [-1, 0, 0]))
    session.keep_path(torch.tensor([[0, 2], [0, 1]]), torch.tensor([2, 1]))
    states.append(session.extend(torch.tensor([[11, 12], [13, 14]])))
    session.keep(torch.tensor([2, 1]))
    return [tensor for each in states for tensor in (each.base, *each.inserted.values())]


# Layers of linear attention take no candidates.
STEPPING = [case for case in CASES if not case.eager_only and case.family != "qwen3_next"]


@pytest.mark.parametrize("case", STEPPING, ids=str)
def test_steps_of_a_session_are_those_with_repeated_keys(
    tiny_checkpoint: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    case: Case,
) -> None:
    base = case.write(tiny_checkpoint, dtype="bfloat16")
    folder = random_graft(
        base, tmp_path / "g", hidden=8, ffn=16, heads=2 if case.full else 0, signals=("reward",)
    )
    model = OtterForCausalLM.from_pretrained(folder)
    ours = _steps(model)
    for module in (attention_hook, stream):
        monkeypatch.setattr(module, "attention_to_run", lambda function: function)
    for got, expected in zip(ours, _steps(model), strict=True):
        assert torch.equal(got, expected)


def test_outside_of_a_session_transformers_own_function_runs() -> None:
    assert attention_to_run(sdpa_attention_forward) is sdpa_attention_forward
    with unrepeated_keys():
        assert attention_to_run(sdpa_attention_forward) is not sdpa_attention_forward
    assert attention_to_run(sdpa_attention_forward) is sdpa_attention_forward
