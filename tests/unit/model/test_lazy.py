"""Streams that run once over many forwards say what they say when they run in each of them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from otter_cli.core.errors import OtterError
from otter_cli.model.lazy import LazyStream, supports_lazy_stream
from otter_cli.model.otter import OtterForCausalLM
from tests.support.families import FULL, Case
from tests.support.grafts import random_graft

TOKENS = torch.tensor([[5, 9, 33, 40, 12, 7], [60, 61, 62, 63, 64, 65]])
PROMPT, STEPS = 3, 3
# Bases with windows, and one whose stream reads h itself.
READ_AT_ONCE = {"mistral", "gemma2", "gemma3_text", "olmo2", "olmo3", "cohere2", "gpt_oss"}


def _arguments(cache: Any, mask: Tensor | None, stop: int) -> dict[str, Any]:
    seen = {} if mask is None else {"attention_mask": mask[:, :stop]}
    return {"past_key_values": cache, "use_cache": True, **seen}


def _at_every_token(model: Any, mask: Tensor | None) -> tuple[Tensor, dict[str, Tensor]]:
    cache = model.new_cache()
    model(TOKENS[:, :PROMPT], **_arguments(cache, mask, PROMPT))
    outs = [
        model(TOKENS[:, at : at + 1], signals=(), logits=False, **_arguments(cache, mask, at + 1))
        for at in range(PROMPT, PROMPT + STEPS)
    ]
    states = {n: torch.cat([o.inserted_state[n] for o in outs], 1) for n in outs[0].inserted_state}
    return torch.cat([out.base_state for out in outs], 1), states


def _at_the_end(model: Any, mask: Tensor | None) -> tuple[Tensor, dict[str, Tensor]]:
    cache, deferred = model.new_cache(), LazyStream(model)
    model(TOKENS[:, :PROMPT], **_arguments(cache, mask, PROMPT))
    steps = [
        deferred.forward(TOKENS[:, at : at + 1], **_arguments(cache, mask, at + 1))
        for at in range(PROMPT, PROMPT + STEPS)
    ]
    return _together(steps)


def _together(steps: list[tuple[Tensor, Mapping[str, Tensor]]]) -> Any:
    y, v = zip(*steps, strict=True)
    return torch.cat(y, 1), {name: torch.cat([one[name] for one in v], 1) for name in v[0]}


@torch.no_grad()
def _compare(model: Any, mask: Tensor | None = None, *, near: float = 1e-9) -> None:
    base, inserted = _at_every_token(model, mask)
    later_base, later = _at_the_end(model, mask)
    assert torch.equal(base, later_base)
    for name, states in inserted.items():
        assert states.abs().max() > 0.01
        torch.testing.assert_close(later[name], states, rtol=near, atol=near)


@pytest.mark.parametrize("case", FULL, ids=str)
def test_what_is_read_later_is_what_is_read_at_once(
    tiny_checkpoint: Any, tmp_path: Path, case: Case
) -> None:
    folder = random_graft(case.write(tiny_checkpoint), tmp_path / "g", hidden=8, heads=2, ffn=16)
    attention = "eager" if case.eager_only else "sdpa"
    model = OtterForCausalLM.from_pretrained(folder, attn_implementation=attention)
    # A family that no longer waits would else pass here without a comparison.
    assert supports_lazy_stream(model) == (case.family not in READ_AT_ONCE)
    if case.family in READ_AT_ONCE:
        with pytest.raises(OtterError, match="read later"):
            LazyStream(model)
        return
    padded = torch.ones_like(TOKENS)
    padded[1, :2] = 0
    _compare(model, near=1e-4)
    _compare(model, padded, near=1e-4)


@pytest.mark.parametrize("sizes", [{"kv": "base", "heads": 4}, {"heads": 0}, {"ffn": 0}], ids=str)
def test_every_form_of_insertion(tiny_llama: Path, tmp_path: Path, sizes: dict[str, Any]) -> None:
    folder = random_graft(
        tiny_llama, tmp_path / "g", **{"hidden": 8, "heads": 2, "ffn": 16} | sizes
    )
    _compare(OtterForCausalLM.from_pretrained(folder, dtype=torch.float64))


def test_two_insertions_read_in_turns(tiny_llama: Path, tmp_path: Path) -> None:
    first = random_graft(tiny_llama, tmp_path / "a", hidden=8, heads=2, ffn=16)
    second = random_graft(first, tmp_path / "b", hidden=4, heads=1, ffn=8, name="second")
    _compare(OtterForCausalLM.from_pretrained(second, dtype=torch.float64))


def test_looking_now_and_then_or_never_changes_nothing(tiny_llama: Path, tmp_path: Path) -> None:
    folder = random_graft(tiny_llama, tmp_path / "g", hidden=8, heads=2, ffn=16)
    model = OtterForCausalLM.from_pretrained(folder, dtype=torch.float64)
    tokens = torch.randint(97, (2, 150), generator=torch.Generator().manual_seed(1))
    cache, deferred, steps = model.new_cache(), LazyStream(model), []
    with torch.no_grad():
        whole = model(tokens, signals=())
        for at in range(tokens.shape[1]):
            one = tokens[:, at : at + 1]
            steps.append(deferred.forward(one, past_key_values=cache, use_cache=True))
            if at in (0, 1, 7):  # after which 142 wait, more than are let to
                torch.testing.assert_close(
                    steps[-1][1]["main"][:, 0],
                    whole.inserted_state["main"][:, at],
                    rtol=1e-9,
                    atol=1e-9,
                )
    base, inserted = _together(steps)
    torch.testing.assert_close(base, whole.base_state, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(inserted["main"], whole.inserted_state["main"], rtol=1e-9, atol=1e-9)


def test_a_stream_normed_by_the_base_reads_at_once(tiny_llama: Path, tmp_path: Path) -> None:
    folder = random_graft(tiny_llama, tmp_path / "g", hidden=8, heads=2, ffn=16, norm="base")
    with pytest.raises(OtterError, match="read later"):
        LazyStream(OtterForCausalLM.from_pretrained(folder))
