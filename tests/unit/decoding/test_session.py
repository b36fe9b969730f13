"""The session: k candidates in a step are k single steps; what is not kept leaves no trace."""

from pathlib import Path
from typing import Any

import pytest
import torch

from otter_cli.core.errors import OtterError
from otter_cli.decoding import DecodingSession, State
from otter_cli.model import OtterForCausalLM
from tests.support.grafts import random_graft

FORMS: list[dict[str, Any]] = [{"heads": 2}, {"heads": 4, "kv": "base"}, {"hidden": 0}]
PROMPTS = [[5, 9, 33, 40, 12], [7, 8], [60, 61, 62, 63, 64, 65, 66]]


@pytest.fixture(params=FORMS, ids=str)
def folder(tiny_llama: Path, tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    return random_graft(tiny_llama, tmp_path / "g", **{"hidden": 8, "ffn": 16, **request.param})


def _load(folder: Path, dtype: torch.dtype = torch.float64, attention: str = "sdpa") -> Any:
    return OtterForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation=attention)


def _alone(model: Any, tokens: list[int]) -> State:
    """The last state of a text by one plain forward: no cache, no padding."""
    with torch.no_grad():
        out = model(torch.tensor([tokens]), signals=(), logits=False)
    return State(out.base_state, out.inserted_state).last()


def _close(session: DecodingSession, got: State, expected: State, tolerance: float) -> None:
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
    states = session.branch(candidates)
    for row, prompt in enumerate(PROMPTS):
        for k, candidate in enumerate(candidates[row].tolist()):
            index = torch.full((3,), k)
            expected = _alone(model, [*prompt, candidate])
            got = states.at(index)
            one = State(
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
    branched.branch(candidates)
    branched.choose(winners)
    plain.step(candidates.gather(1, winners[:, None])[:, 0])
    assert torch.equal(branched.valid, plain.valid)
    assert torch.equal(branched.positions, plain.positions)
    for ours, theirs, before in zip(branched._layers(), plain._layers(), prefix, strict=True):
        assert ours.keys.shape == theirs.keys.shape
        assert torch.equal(ours.keys[:, :, : before.shape[2]], before)
        torch.testing.assert_close(ours.keys, theirs.keys, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(ours.values, theirs.values, rtol=1e-5, atol=1e-5)


def test_rows_keep_different_numbers_of_a_chain(folder: Path) -> None:
    """What a row does not keep is as if it had never been fed, for all later steps."""
    model = _load(folder)
    session = DecodingSession(model)
    session.prefill(PROMPTS)
    chain = torch.tensor([[3, 50, 17], [4, 51, 18], [5, 52, 19]])
    session.extend(chain)
    session.keep(torch.tensor([1, 3, 2]), of=3)
    state = session.step(torch.tensor([30, 31, 32]))
    for row, (prompt, kept) in enumerate(zip(PROMPTS, (1, 3, 2), strict=True)):
        text = [*prompt, *chain[row, :kept].tolist(), 30 + row]
        got = State(
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


def test_windows_refuse_candidates(tiny_checkpoint: Any, tmp_path: Path) -> None:
    base = tiny_checkpoint("mistral", sliding_window=4)
    model = _load(random_graft(base, tmp_path / "g", hidden=8, heads=2, ffn=16))
    session = DecodingSession(model)
    session.prefill(PROMPTS[:1])
    session.step(torch.tensor([3]))
    with pytest.raises(OtterError, match="windows"):
        session.branch(torch.tensor([[3, 4]]))
    with pytest.raises(OtterError, match="windows"):
        session.extend(torch.tensor([[3, 4]]))


def test_a_thousand_random_operations_against_recomputing_everything(
    tiny_llama: Path, tmp_path: Path
) -> None:
    """Ragged steps, candidates and chains in any order: the last state is that of the text."""
    folder = random_graft(tiny_llama, tmp_path / "g", hidden=8, heads=2, ffn=16)
    model = _load(folder)
    draw = torch.Generator().manual_seed(0)

    def pick(low: int, high: int, *shape: int) -> torch.Tensor:
        return torch.randint(low, high, shape, generator=draw)

    done = 0
    while done < 1000:
        session, texts = DecodingSession(model), [list(prompt) for prompt in PROMPTS]
        state = session.prefill(texts)
        for _ in range(int(pick(5, 30, 1))):
            kind, n = int(pick(0, 3, 1)), int(pick(1, 5, 1))
            tokens = pick(3, 97, 3, n)
            if kind == 0:
                state = session.step(tokens[:, 0])
                kept = torch.ones(3, dtype=torch.long)
            elif kind == 1:
                kept = pick(1, n + 1, 3)
                state = session.extend(tokens).at(kept - 1)
                session.keep(kept, of=n)
            else:
                index = pick(0, n, 3)
                state = session.branch(tokens).at(index)
                session.choose(index)
                tokens, kept = tokens.gather(1, index[:, None]), torch.ones(3, dtype=torch.long)
            for row, text in enumerate(texts):
                text += tokens[row, : int(kept[row])].tolist()
            done += 1
        for row, text in enumerate(texts):
            assert int(session.positions[row]) == len(text)
            got = State(
                state.base[row : row + 1],
                {name: v[row : row + 1] for name, v in state.inserted.items()},
            )
            _close(session, got, _alone(model, text), 1e-4)
