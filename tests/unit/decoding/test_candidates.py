"""One step of k candidates equals k steps of one token, to 1e-10 without rounding to float32."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from otter_cli.core.errors import OtterError
from otter_cli.decoding.kv_session import HiddenStates
from otter_cli.decoding.session import DecodingSession
from otter_cli.model.otter import OtterForCausalLM
from tests.support.grafts import random_graft

PROMPTS = [[5, 9, 33, 40, 12], [7, 8], [60, 61, 62, 63, 64, 65, 66]]
CANDIDATES = torch.tensor([[3, 50, 17, 90], [4, 51, 18, 91], [5, 52, 19, 92]])


@pytest.fixture(params=[{"heads": 2}, {"heads": 4, "kv": "base"}, {"hidden": 0}], ids=str)
def folder(tiny_llama: Path, tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    return random_graft(tiny_llama, tmp_path / "g", **{"hidden": 8, "ffn": 16, **request.param})


@pytest.fixture
def norms_in_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    """The base's norm rounds to float32 in any dtype, which would hide errors below 1e-7."""
    from transformers.models.llama.modeling_llama import LlamaRMSNorm

    def forward(self: Any, states: Tensor) -> Tensor:
        variance = states.double().pow(2).mean(-1, keepdim=True)
        return self.weight * (states * (variance + self.variance_epsilon).rsqrt())

    monkeypatch.setattr(LlamaRMSNorm, "forward", forward)


def _single_steps(model: Any) -> list[list[HiddenStates]]:
    """By row, then by candidate: a new session is fed the prompt, then that token."""
    found = []
    for prompt, tokens in zip(PROMPTS, CANDIDATES, strict=True):
        states = []
        for token in tokens:
            session = DecodingSession(model)
            session.prefill([prompt])
            states.append(session.step(token[None]))
        found.append(states)
    return found


@pytest.mark.usefixtures("norms_in_float64")
def test_they_are_equal_to_1e_10_in_float64(folder: Path) -> None:
    model = OtterForCausalLM.from_pretrained(
        folder, dtype=torch.float64, attn_implementation="sdpa"
    )
    session = DecodingSession(model)
    session.prefill(PROMPTS)
    states = session.extend_candidates(CANDIDATES)
    for row, steps in enumerate(_single_steps(model)):
        for k, alone in enumerate(steps):
            together = HiddenStates(
                states.base[row, k], {name: v[row, k] for name, v in states.inserted.items()}
            )
            pairs = [(session.logits(together), session.logits(alone)[0, 0])]
            for name in model.signal_configs:
                pairs.append((session.read(name, together), session.read(name, alone)[0, 0]))
            for got, expected in pairs:
                torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.usefixtures("norms_in_float64")
@pytest.mark.parametrize("k", range(4))
def test_the_winner_goes_on_as_if_it_had_been_alone(folder: Path, k: int) -> None:
    model = OtterForCausalLM.from_pretrained(
        folder, dtype=torch.float64, attn_implementation="sdpa"
    )
    session = DecodingSession(model)
    session.prefill(PROMPTS)
    session.extend_candidates(CANDIDATES)
    session.keep_candidate(torch.full((3,), k))
    got = session.logits(session.step(torch.tensor([30, 31, 32])))
    for row, prompt in enumerate(PROMPTS):
        alone = DecodingSession(model)
        alone.prefill([[*prompt, int(CANDIDATES[row, k])]])
        expected = alone.logits(alone.step(torch.tensor([30 + row])))
        torch.testing.assert_close(got[row], expected[0], rtol=1e-10, atol=1e-10)


def test_attention_that_takes_no_mask_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = OtterForCausalLM.from_pretrained(folder)
    monkeypatch.setattr(model.config, "_attn_implementation", "flash_attention_2")
    session = DecodingSession(model)
    with pytest.raises(OtterError, match="flash_attention_2"):
        session.extend_candidates(CANDIDATES)
