"""Rows of several requests in one session, against `generate` for each request alone."""

from pathlib import Path
from typing import Any

import pytest
import torch

from otter_cli.core.errors import OtterError
from otter_cli.decoding.bounds import Stops, parse_signal_bound
from otter_cli.decoding.generate import generate
from otter_cli.decoding.guides.signal_guides import SignalGuide, VocabularyGuide
from otter_cli.decoding.sampling import Sampling
from otter_cli.decoding.shared_batch import RowRequest, RowToken, SharedBatch, shared_rows
from otter_cli.model.otter import OtterForCausalLM
from tests.support.families import CASES
from tests.support.grafts import random_graft

SIGNALS = ("reward", "tone=classes:a,b", "value=vocabulary")
PROMPTS = [(5, 9, 33, 40, 12), (7, 8), (60, 61, 62, 63, 64, 65, 66)]


@pytest.fixture(scope="module")
def model(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = random_graft(
        tiny_llama, tmp_path_factory.mktemp("g") / "g", signals=SIGNALS, hidden=8, heads=2, ffn=16
    )
    return OtterForCausalLM.from_pretrained(folder, dtype=torch.float64)


def sampling(count: int, temperature: float = 0.0, seed: int = 0) -> Sampling:
    return Sampling(count, temperature, top_p=0.95, seed=seed, ignore_eos=True)


def run(model: Any, requests: list[RowRequest]) -> tuple[list[list[RowToken]], list[Any]]:
    """The tokens of each row, and their generations."""
    batch = SharedBatch(model, requests)
    rows, taken = list(batch.rows), [[] for _ in requests]
    while not batch.done:
        for row in batch.step():
            taken[rows.index(row)] += row.take()
    assert all(row.ended for row in rows)
    return taken, [row.generation for row in rows]


def alone(model: Any, request: RowRequest) -> Any:
    [row] = generate(
        model,
        [list(request.prompt)],
        request.sampling,
        guide=request.guides,
        signals=[name for name in request.signals if name != "value"],
        stops=request.stops,
        earlier=[list(request.prompt)] * request.copy,
    )
    return row


@pytest.mark.parametrize(
    "request_",
    [
        RowRequest(PROMPTS[0], sampling(20)),
        RowRequest(PROMPTS[0], sampling(20, 0.8), copy=2, signals=("tone",)),
        RowRequest(PROMPTS[2], sampling(20), signals=("reward", "tone"), read_each_token=True),
        RowRequest(PROMPTS[1], sampling(20, 0.8), guides=(SignalGuide("reward", 3.0),)),
        RowRequest(PROMPTS[1], sampling(9), guides=(VocabularyGuide("value", -2.0),)),
    ],
    ids=["plain", "drawn", "signals", "guided by text", "guided by action values"],
)
def test_one_row_is_that_of_generate_bit_for_bit(model: Any, request_: RowRequest) -> None:
    [tokens], [got] = run(model, [request_])
    wanted = alone(model, request_)
    assert [token.token for token in tokens] == got.tokens == wanted.tokens
    assert [token.logprob for token in tokens] == wanted.logprobs
    if request_.read_each_token:  # one read over 16 states rounds differently from 16 reads
        for name, values in wanted.signals.items():
            torch.testing.assert_close(torch.tensor(got.signals[name]), torch.tensor(values))
    else:
        assert got.signals == wanted.signals


def test_rows_of_a_batch_have_their_own_settings_and_leave_when_they_end(model: Any) -> None:
    requests = [
        RowRequest(PROMPTS[0], sampling(25), signals=("reward",)),
        RowRequest(PROMPTS[1], sampling(4), top_logprobs=3),
        RowRequest(PROMPTS[2], sampling(12, 0.9, seed=3), signals=("tone",)),
        RowRequest(PROMPTS[0], sampling(12, 0.7, seed=5), copy=1),
    ]
    batch = SharedBatch(model, requests)
    sizes = []
    rows, taken = list(batch.rows), [[] for _ in requests]
    while not batch.done:
        sizes.append(len(batch.rows))
        for row in batch.step():
            taken[rows.index(row)] += row.take()
    assert sizes == [4] * 4 + [3] * 8 + [1] * 13
    for request, row, tokens in zip(requests, rows, taken, strict=True):
        wanted = alone(model, request)
        assert row.generation.tokens == wanted.tokens == [token.token for token in tokens]
        torch.testing.assert_close(
            torch.tensor(row.generation.logprobs), torch.tensor(wanted.logprobs)
        )
        for name, values in wanted.signals.items():
            got = torch.tensor([token.signals[name] for token in tokens])
            torch.testing.assert_close(got, torch.tensor(values), rtol=1e-6, atol=1e-6)
    tops = [token.top for token in taken[1]]
    assert all(len(top) == 3 and top[0] == (t.token, t.logprob) for top, t in zip(
        tops, taken[1], strict=True))  # fmt: skip


@pytest.mark.parametrize("guide", [SignalGuide, VocabularyGuide])
def test_guided_rows_have_their_own_strength(model: Any, guide: Any) -> None:
    name = "reward" if guide is SignalGuide else "value"
    requests = [
        RowRequest(prompt, sampling(6 + 4 * place), guides=(guide(name, strength),))
        for place, (prompt, strength) in enumerate(zip(PROMPTS, (4.0, -4.0, 0.5), strict=True))
    ]
    _, got = run(model, requests)
    assert [row.tokens for row in got] == [alone(model, each).tokens for each in requests]


def test_a_bound_ends_its_own_row_alone(model: Any) -> None:
    highest = max(alone(model, RowRequest(PROMPTS[0], sampling(20), signals=("reward",))).signals[
        "reward"])  # fmt: skip
    stops = Stops(signals=(parse_signal_bound(f"reward>={highest!r}"),))
    requests = [
        RowRequest(PROMPTS[0], sampling(20), stops=stops, signals=("reward",)),
        RowRequest(PROMPTS[1], sampling(20)),
    ]
    tokens, [stopped, whole] = run(model, requests)
    assert stopped.finish == "rejected" and stopped.stopped_by == str(stops.signals[0])
    assert tokens[0][-1].signals["reward"] == pytest.approx(highest, abs=1e-9)
    assert len(tokens[0]) <= 20 and whole.finish == "length" and len(tokens[1]) == 20


def test_action_values_are_those_of_the_chosen_token(model: Any) -> None:
    request = RowRequest(PROMPTS[0], sampling(8), signals=("value", "reward"))
    [tokens], [got] = run(model, [request])
    ids = torch.tensor([[*PROMPTS[0], *got.tokens]])
    with torch.no_grad():
        out = model(ids)
    for place, token in enumerate(tokens):
        assert list(token.signals) == ["value", "reward"]
        at = len(PROMPTS[0]) + place
        value = out.signals["value"][0, at - 1, token.token]
        assert token.signals["value"] == pytest.approx(float(value), abs=1e-9)
        assert token.signals["reward"] == pytest.approx(float(out.signals["reward"][0, at]))


def test_a_cancelled_row_leaves_and_the_others_go_on(model: Any) -> None:
    requests = [RowRequest(p, sampling(20), signals=("reward",)) for p in PROMPTS]
    batch = SharedBatch(model, requests)
    rows = list(batch.rows)
    for _ in range(5):
        batch.step()
    rows[1].cancelled = True
    while not batch.done:
        batch.step()
        assert rows[1] not in batch.rows
    assert len(rows[1].generation.tokens) == 5
    for place in (0, 2):
        wanted = alone(model, requests[place])
        assert rows[place].generation.tokens == wanted.tokens
        torch.testing.assert_close(
            torch.tensor(rows[place].generation.signals["reward"]),
            torch.tensor(wanted.signals["reward"]), rtol=1e-6, atol=1e-6,
        )  # fmt: skip


@pytest.mark.parametrize(
    ("family", "config"), [("mistral", {"sliding_window": 8}), ("qwen3_next", {})]
)
def test_a_cache_that_cannot_lose_rows_feeds_them_until_all_end(
    tiny_checkpoint: Any, tmp_path: Path, family: str, config: dict[str, Any]
) -> None:
    [case] = [case for case in CASES if case.family == family]
    base = tiny_checkpoint(family, **{**case.config, **config})
    folder = random_graft(base, tmp_path / "g", signals=("reward",), hidden=8, heads=0, ffn=16)
    # The experts of qwen3_next have no product in float64.
    dtype = torch.float64 if family == "mistral" else torch.float32
    other = OtterForCausalLM.from_pretrained(folder, dtype=dtype)
    requests = [
        RowRequest(PROMPTS[0], sampling(18), signals=("reward",)),
        RowRequest(PROMPTS[0][::-1], sampling(5)),
    ]
    _, got = run(other, requests)
    assert [row.tokens for row in got] == [alone(other, each).tokens for each in requests]


def test_which_rows_start_together(model: Any) -> None:
    def row(length: int, *guides: Any) -> RowRequest:
        return RowRequest(tuple(range(3, 3 + length)), sampling(4), guides=guides)

    soft, hard = SignalGuide("reward", 1.0), SignalGuide("reward", 9.0)
    waiting = [row(5), row(9, soft), row(20), row(9, hard), row(90), row(6)]
    assert shared_rows(model, waiting, 8) == [0, 2, 5]
    assert shared_rows(model, waiting, 2) == [0, 2]
    assert shared_rows(model, waiting[1:], 8) == [0, 2]
    assert shared_rows(model, [row(9, soft), row(9, SignalGuide("reward", 1.0, 3))], 8) == [0]


def test_a_request_that_cannot_run_is_refused(model: Any) -> None:
    for request in (
        RowRequest((), sampling(4)),
        RowRequest(PROMPTS[0], sampling(400)),
        RowRequest(PROMPTS[0], sampling(4), guides=(SignalGuide("reward", 1.0, 1000),)),
    ):
        with pytest.raises(OtterError):
            SharedBatch(model, [request])


def test_plain_rows_have_the_bits_of_transformers_for_the_same_batch(
    tiny_llama: Path, tmp_path: Path
) -> None:
    folder = random_graft(tiny_llama, tmp_path / "g", hidden=8, heads=2, ffn=16)
    other = OtterForCausalLM.from_pretrained(folder)
    requests = [RowRequest(prompt, sampling(12), signals=("reward",)) for prompt in PROMPTS]
    _, rows = run(other, requests)
    width = max(map(len, PROMPTS))
    padded = torch.tensor([[0] * (width - len(prompt)) + list(prompt) for prompt in PROMPTS])
    out = other.base.generate(
        padded,
        attention_mask=torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in PROMPTS]),
        max_new_tokens=12,
        do_sample=False,
        eos_token_id=[],
        output_logits=True,
        return_dict_in_generate=True,
    )
    logprobs = torch.stack(out.logits, 1).log_softmax(-1)
    for place, row in enumerate(rows):
        tokens = out.sequences[place, width:]
        assert row.tokens == tokens.tolist()
        wanted = logprobs[place].gather(-1, tokens[:, None])[:, 0]
        assert torch.equal(torch.tensor(row.logprobs), wanted)
