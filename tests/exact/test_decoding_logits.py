"""Decoding to the bit: whatever is read, guided by nothing or proposed beside it, the base's logits
are the ones that transformers' own loop has."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from otter_cli.decoding.bounds import Gate
from otter_cli.decoding.generate import generate
from otter_cli.decoding.guides.signal_guides import SignalGuide
from otter_cli.decoding.sampling import Sampling
from otter_cli.decoding.session import DecodingSession
from otter_cli.model.otter import OtterForCausalLM
from tests.support.grafts import random_graft

PROMPTS = [[5, 9, 33, 40, 12], [7, 8], [60, 61, 62, 63, 64, 65, 66]]
GREEDY = Sampling(max_new_tokens=12, ignore_eos=True)
DRAWN = Sampling(max_new_tokens=12, temperature=0.9, top_k=40, top_p=0.95, seed=4, ignore_eos=True)
FORMS: list[dict[str, Any]] = [{"heads": 2}, {"heads": 4, "kv": "base"}, {"hidden": 0}]


@pytest.fixture(params=FORMS, ids=str, scope="module")
def folder(tiny_llama: Path, tmp_path_factory: Any, request: pytest.FixtureRequest) -> Path:
    out = tmp_path_factory.mktemp("g") / "g"
    return random_graft(tiny_llama, out, **{"hidden": 8, "ffn": 16, **request.param})


@contextmanager
def recorded_logits(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Tensor]]:
    """Every logits [rows, vocab] that a generation chose from."""
    seen: list[Tensor] = []
    read = DecodingSession.logits

    def spy(self: DecodingSession, state: Any) -> Tensor:
        seen.append(logits := read(self, state))
        return logits

    with monkeypatch.context() as patch:
        patch.setattr(DecodingSession, "logits", spy)
        yield seen


def _theirs(model: Any, prompts: list[list[int]], count: int) -> list[Tensor]:
    """The raw logits of transformers' own greedy loop, padded on the left."""
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(p)) + p for p in prompts])
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
    out = model.base.generate(
        ids,
        attention_mask=mask,
        max_new_tokens=count,
        do_sample=False,
        eos_token_id=[],
        output_logits=True,
        return_dict_in_generate=True,
    )
    return list(out.logits)


@pytest.mark.parametrize("prompts", [PROMPTS[:1], PROMPTS], ids=["one row", "ragged rows"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("signals", [(), ("reward", "toxicity")], ids=["alone", "with signals"])
def test_plain_logits_are_transformers_own(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    prompts: list[list[int]],
    dtype: torch.dtype,
    attention: str,
    signals: tuple[str, ...],
) -> None:
    model = OtterForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation=attention)
    with recorded_logits(monkeypatch) as ours:
        generate(model, prompts, GREEDY, signals=signals)
    theirs = _theirs(model, prompts, 12)
    assert len(ours) == len(theirs) == 12
    for got, expected in zip(ours, theirs, strict=True):
        assert torch.equal(got[:, 0].float(), expected.float())


@pytest.mark.parametrize("sampling", [GREEDY, DRAWN], ids=["greedy", "drawn"])
@pytest.mark.parametrize("signals", [(), ("reward",)], ids=["alone", "with signals"])
def test_no_strength_and_a_closed_gate_are_plain_decoding(
    folder: Path, monkeypatch: pytest.MonkeyPatch, sampling: Sampling, signals: tuple[str, ...]
) -> None:
    model = OtterForCausalLM.from_pretrained(folder)
    runs, logits = [], []
    never = Gate(entropy=1e9)
    weights = (0.0, -0.0, 0.0)
    for guide, gate in (
        (None, None),
        (SignalGuide("reward", 0.0), None),
        ([SignalGuide("toxicity", -0.0), SignalGuide("reward", weights)], None),
        (SignalGuide("reward", 5.0), never),
    ):
        with recorded_logits(monkeypatch) as seen:
            runs.append(generate(model, PROMPTS, sampling, guide=guide, gate=gate, signals=signals))
        logits.append(torch.stack(seen))
    plain, *zeros = runs
    for zero, theirs in zip(zeros, logits[1:], strict=True):
        assert torch.equal(theirs, logits[0])
        for ours, row in zip(zero, plain, strict=True):
            assert (ours.tokens, ours.logprobs) == (row.tokens, row.logprobs)
            assert ours.signals == row.signals
            assert ours.counters.tokens_fed == row.counters.tokens_fed


def test_candidates_do_not_see_each_other_nor_other_rows(folder: Path) -> None:
    """Another candidate, in this row or the next, moves no bit of the others."""
    model = OtterForCausalLM.from_pretrained(folder)
    candidates = torch.tensor([[3, 50, 17], [4, 51, 18], [5, 52, 19]])
    other = candidates.clone()
    other[1, 2] = 90
    sessions = [DecodingSession(model), DecodingSession(model)]
    states = []
    for session, tokens in zip(sessions, (candidates, other), strict=True):
        session.prefill(PROMPTS)
        layers = [layer for layer in session.cache.layers if layer.is_initialized]
        before = [layer.keys.clone() for layer in layers]
        assert len(layers) >= model.shape.layers
        states.append(session.extend_candidates(tokens))
        prefix = max(map(len, PROMPTS))
        for layer, keys in zip(layers, before, strict=True):
            assert torch.equal(layer.keys[:, :, :prefix], keys)
    same = torch.ones_like(candidates, dtype=torch.bool)
    same[1, 2] = False
    for name in ("base", *states[0].inserted):
        one, two = (s.base if name == "base" else s.inserted[name] for s in states)
        assert torch.equal(one[same], two[same])
        assert not torch.equal(one[~same], two[~same])


def test_the_loser_leaves_no_trace(folder: Path) -> None:
    """After a choice nothing of the candidates that lost is left, in any later step."""
    model = OtterForCausalLM.from_pretrained(folder)
    after = []
    for losers in ([50, 17], [61, 80]):
        session = DecodingSession(model)
        session.prefill(PROMPTS[:1])
        session.extend_candidates(torch.tensor([[losers[0], 3, losers[1]]]))
        session.keep_candidate(torch.tensor([1]))
        after.append(session.logits(session.step(torch.tensor([9]))))
    assert torch.equal(after[0], after[1])
