"""The session: k candidates in a step equal k single steps; dropped tokens leave no trace."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

from otter_cli.core.errors import OtterError
from otter_cli.decoding.kv_session import HiddenStates
from otter_cli.decoding.session import DecodingSession
from otter_cli.model.otter import OtterForCausalLM
from tests.support.grafts import random_graft
from tests.support.session_operations import Soak

FORMS: list[dict[str, Any]] = [{"heads": 2}, {"heads": 4, "kv": "base"}, {"hidden": 0}]
PROMPTS = [[5, 9, 33, 40, 12], [7, 8], [60, 61, 62, 63, 64, 65, 66]]


@pytest.fixture(params=FORMS, ids=str)
def folder(tiny_llama: Path, tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    return random_graft(tiny_llama, tmp_path / "g", **{"hidden": 8, "ffn": 16, **request.param})


def _load(folder: Path, dtype: torch.dtype = torch.float64, attention: str = "sdpa") -> Any:
    return OtterForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation=attention)


def _alone(model: Any, tokens: list[int]) -> HiddenStates:
    """The last state of a text by one plain forward: no cache, no padding."""
    with torch.no_grad():
        out = model(torch.tensor([tokens]), signals=(), logits=False)
    return HiddenStates(out.base_state, out.inserted_state).last()


def _close(
    session: DecodingSession, got: HiddenStates, expected: HiddenStates, tolerance: float
) -> None:
    for name in session.model.signal_configs:
        torch.testing.assert_close(
            session.read(name, got), session.read(name, expected), rtol=tolerance, atol=tolerance
        )
    torch.testing.assert_close(
        session.logits(got), session.logits(expected), rtol=tolerance, atol=tolerance
    )


# transformers' own eager attention turns padding to NaN in float64.
@pytest.mark.parametrize(
    ("attention", "dtype", "tolerance"),
    [
        ("sdpa", torch.float64, 1e-5),
        ("sdpa", torch.float32, 1e-4),
        ("eager", torch.float32, 1e-4),
    ],
    ids=str,
)
def test_candidates_are_single_steps(
    folder: Path, attention: str, dtype: torch.dtype, tolerance: float
) -> None:
    """Ragged rows; float64 is bounded by the base's own norms, which round to float32."""
    model = _load(folder, dtype, attention)
    session = DecodingSession(model)
    session.prefill(PROMPTS)
    candidates = torch.tensor([[3, 50, 17, 90], [4, 51, 18, 91], [5, 52, 19, 92]])
    states = session.extend_candidates(candidates)
    for row, prompt in enumerate(PROMPTS):
        for k, candidate in enumerate(candidates[row].tolist()):
            index = torch.full((3,), k)
            expected = _alone(model, [*prompt, candidate])
            got = states.select(index)
            one = HiddenStates(
                got.base[row : row + 1], {n: v[row : row + 1] for n, v in got.inserted.items()}
            )
            _close(session, one, expected, tolerance)


def test_after_a_choice_the_cache_is_as_if_only_the_winner_had_been_fed(folder: Path) -> None:
    model = _load(folder)
    branched, plain = DecodingSession(model), DecodingSession(model)
    candidates = torch.tensor([[3, 50, 17], [4, 51, 18], [5, 52, 19]])
    winners = torch.tensor([2, 0, 1])
    branched.prefill(PROMPTS)
    plain.prefill(PROMPTS)
    prefix = [layer.keys.clone() for layer in plain.cache.layers if layer.is_initialized]
    branched.extend_candidates(candidates)
    branched.keep_candidate(winners)
    plain.step(candidates.gather(1, winners[:, None])[:, 0])
    plain.catch_up()
    assert torch.equal(branched.kept_slots, plain.kept_slots)
    assert torch.equal(branched.positions, plain.positions)
    for ours, theirs, before in zip(
        branched.slots._layers(), plain.slots._layers(), prefix, strict=True
    ):
        assert ours.keys.shape == theirs.keys.shape
        assert torch.equal(ours.keys[:, :, : before.shape[2]], before)
        torch.testing.assert_close(ours.keys, theirs.keys, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(ours.values, theirs.values, rtol=1e-5, atol=1e-5)


def test_rows_keep_different_numbers_of_a_chain(folder: Path) -> None:
    """A token that a row does not keep has no effect on later steps."""
    model = _load(folder)
    session = DecodingSession(model)
    session.prefill(PROMPTS)
    chain = torch.tensor([[3, 50, 17], [4, 51, 18], [5, 52, 19]])
    session.extend(chain)
    session.keep(torch.tensor([1, 3, 2]))
    state = session.step(torch.tensor([30, 31, 32]))
    for row, (prompt, kept) in enumerate(zip(PROMPTS, (1, 3, 2), strict=True)):
        text = [*prompt, *chain[row, :kept].tolist(), 30 + row]
        got = HiddenStates(
            state.base[row : row + 1], {n: v[row : row + 1] for n, v in state.inserted.items()}
        )
        _close(session, got, _alone(model, text), 1e-5)


def test_a_session_without_the_stream_is_the_base_alone(tiny_llama: Path, tmp_path: Path) -> None:
    folder = random_graft(tiny_llama, tmp_path / "g", hidden=8, heads=2, ffn=16)
    model = _load(folder)
    with_stream, without = DecodingSession(model), DecodingSession(model, stream=False)
    states = [session.prefill(PROMPTS) for session in (with_stream, without)]
    assert torch.equal(states[0].base, states[1].base)
    assert states[1].inserted == {}
    assert with_stream.cache_bytes() > without.cache_bytes()


def test_a_windowed_cache_refuses_what_needs_every_slot(
    tiny_checkpoint: Any, tmp_path: Path
) -> None:
    base = tiny_checkpoint("mistral", sliding_window=4)
    model = _load(random_graft(base, tmp_path / "g", hidden=8, heads=2, ffn=16))
    session = DecodingSession(model, windows="cached")
    session.prefill(PROMPTS[:1])
    session.step(torch.tensor([3]))
    for many in (session.extend_candidates, session.extend):
        with pytest.raises(OtterError, match="windows only"):
            many(torch.tensor([[3, 4]]))
    with pytest.raises(OtterError, match="no tokens back"):
        session.crop(torch.tensor([1]))


def test_a_preallocated_cache_says_when_it_is_full(folder: Path) -> None:
    session = DecodingSession(_load(folder), length=9)
    session.prefill(PROMPTS)
    session.step(torch.tensor([3, 4, 5]))
    with pytest.raises(OtterError, match="10 slots, of a KV cache of 9"):
        session.extend_candidates(torch.tensor([[3, 4]] * 3))


def test_a_preallocated_cache_gives_the_same_states(folder: Path) -> None:
    """Slots that no token sees have no effect."""
    model = _load(folder)
    for tokens in ([[3, 50, 17]] * 3, [[4]] * 3):
        states = []
        for length in (None, 40):
            session = DecodingSession(model, length=length)
            session.prefill(PROMPTS)
            states.append(session.extend_candidates(torch.tensor(tokens)))
        torch.testing.assert_close(states[0].base, states[1].base, rtol=1e-12, atol=1e-12)


def test_counters_tell_what_was_fed_and_kept(folder: Path) -> None:
    session = DecodingSession(_load(folder))
    session.prefill(PROMPTS)
    session.extend_tree(torch.tensor([[3, 4, 5]] * 3), [-1, 0, -1])
    session.keep_path(torch.tensor([[0, 1], [2, 0], [0, 0]]), torch.tensor([2, 1, 0]))
    assert (session.passes, session.fed_tokens, session.kept_tokens) == (2, 21 + 9, 3)
    assert session.positions.tolist() == [7, 3, 7]


def test_a_child_before_its_parent_is_a_mistake(folder: Path) -> None:
    session = DecodingSession(_load(folder))
    session.prefill(PROMPTS)
    with pytest.raises(ValueError, match="parent 1"):
        session.extend_tree(torch.tensor([[3, 4]] * 3), [1, -1])


def test_random_operations_against_recomputing_everything(tmp_path: Path) -> None:
    """Steps, chains, candidates, trees, crops, forks and reordering in any order; a hundred
    thousand of them by `make soak`."""
    found = Soak().run(tmp_path, 900)
    assert found.operations == 900 and len(found.by_kind) == 7 and len(found.memory) >= 5


def test_a_soak_goes_on_where_it_was_stopped(tmp_path: Path) -> None:
    whole, parts = Soak().run(tmp_path / "a", 250), Soak().run(tmp_path / "b", 120)
    saved = json.loads(json.dumps(asdict(parts)))
    again = Soak(**saved).run(tmp_path / "c", 250)
    assert again.processes == 2 and again.operations == whole.operations == 250
    assert again.sessions > parts.sessions and again.largest_difference < 1e-5
