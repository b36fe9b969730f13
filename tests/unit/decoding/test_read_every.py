"""Signals of many tokens that are read at once give the same text, signals and ends."""

from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch

from otter_cli.core.errors import OtterError
from otter_cli.decoding.best_of import BestOf, best_of
from otter_cli.decoding.bounds import Gate, SignalBound, Stops
from otter_cli.decoding.generate import generate
from otter_cli.decoding.guides.signal_guides import SignalGuide, VocabularyGuide
from otter_cli.decoding.sampling import Sampling
from otter_cli.model.otter import OtterForCausalLM
from tests.support.grafts import random_graft

PROMPTS = [[5, 9, 33, 40, 12], [7, 8], [60, 61, 62, 63, 64, 65, 66]]
DRAWN = Sampling(max_new_tokens=20, temperature=0.9, seed=4)


@pytest.fixture(scope="module")
def model(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = random_graft(
        tiny_llama,
        tmp_path_factory.mktemp("g") / "g",
        signals=("reward", "toxicity", "action=action-reward"),
        hidden=8,
        heads=2,
        ffn=16,
        scale=0.2,
    )
    return OtterForCausalLM.from_pretrained(folder, dtype=torch.float64)


@pytest.mark.parametrize("every", [None, 2, 7, 100])
def test_rows_that_end_at_their_own_time_have_their_own_signals(
    model: Any, monkeypatch: pytest.MonkeyPatch, every: int | None
) -> None:
    # Two likely tokens end a text here, so that rows end at different lengths.
    free = generate(model, PROMPTS, Sampling(20, temperature=0.9, seed=4, ignore_eos=True))
    monkeypatch.setattr(
        model.generation_config, "eos_token_id", [free[0].tokens[4], free[1].tokens[11]]
    )
    told: list[tuple[int, int]] = []
    names = ["reward", "toxicity"]
    each = generate(model, PROMPTS, DRAWN, signals=names, read_every=1)
    later = generate(
        model,
        PROMPTS,
        DRAWN,
        signals=names,
        read_every=every,
        on_token=lambda row, token: told.append((row, token)),
    )
    assert len({len(row.tokens) for row in each}) > 1
    for number, (one, other) in enumerate(zip(each, later, strict=True)):
        assert one.tokens == other.tokens and one.finish == other.finish
        assert one.logprobs == other.logprobs
        assert [token for row, token in told if row == number] == one.tokens
        for name in names:
            assert len(other.signals[name]) == len(one.tokens)
            torch.testing.assert_close(
                torch.tensor(other.signals[name]), torch.tensor(one.signals[name])
            )
    assert each[0].counters.base_passes == later[0].counters.base_passes


@pytest.mark.parametrize("every", [2, 5, 100])
def test_a_bound_ends_a_text_at_the_token_that_crossed_it(model: Any, every: int) -> None:
    sampling = Sampling(20, temperature=0.9, seed=3, ignore_eos=True)
    (read,) = generate(model, PROMPTS[:1], sampling, signals=["reward"], read_every=1)
    # The first row crosses one bound and then the other, at its third and its fifth token.
    rewards = torch.tensor(read.signals["reward"])
    over = next(i for i in range(2, 20) if rewards[i] > rewards[:i].max())
    under = next(i for i in range(2, 20) if rewards[i] < rewards[:i].min())
    high = float(rewards[over] + rewards[:over].max()) / 2
    low = float(rewards[under] + rewards[:under].min()) / 2
    first, second = sorted((over, under))
    assert (first, second) == (2, 4)
    stops = Stops(signals=(SignalBound("reward", high), SignalBound("reward", low, above=False)))
    told: list[tuple[int, int]] = []
    at_once = generate(model, PROMPTS, sampling, signals=["reward"], stops=stops)
    later = generate(
        model,
        PROMPTS,
        sampling,
        signals=["reward"],
        stops=stops,
        read_every=every,
        on_token=lambda row, token: told.append((row, token)),
    )
    assert at_once[0].finish == "rejected" and len(at_once[0].tokens) == first + 1
    for number, (one, other) in enumerate(zip(at_once, later, strict=True)):
        assert (one.tokens, one.finish, one.message) == (other.tokens, other.finish, other.message)
        assert len(other.signals["reward"]) == len(other.tokens)
        assert [token for row, token in told if row == number] == other.tokens


def test_best_of_n_is_judged_as_when_each_token_is_read(
    model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    sampling = Sampling(12, temperature=0.9, seed=4, ignore_eos=True)
    for block in (None, 5):
        later = best_of(model, PROMPTS, sampling, BestOf(3, signal="reward", block=block))
        with monkeypatch.context() as patch:
            module = import_module("otter_cli.decoding.best_of")
            patch.setattr(module, "READ_EVERY", 1)
            each = best_of(model, PROMPTS, sampling, BestOf(3, signal="reward", block=block))
        assert [row.tokens for row in later] == [row.tokens for row in each]
        for one, other in zip(each, later, strict=True):
            torch.testing.assert_close(
                torch.tensor(other.signals["reward"]), torch.tensor(one.signals["reward"])
            )


@pytest.mark.parametrize(
    "guide", [SignalGuide("reward", 4.0, 4), VocabularyGuide("action", 4.0, 4)], ids=["V", "Q"]
)
def test_streams_that_sleep_while_a_gate_is_closed_guide_as_those_that_do_not(
    model: Any, monkeypatch: pytest.MonkeyPatch, guide: Any
) -> None:
    sampling = Sampling(24, ignore_eos=True)
    plain = generate(model, PROMPTS[:1], sampling)
    # Open at about half of the tokens.
    gate = Gate(top_probability=float(torch.tensor(plain[0].logprobs).exp().median()))
    asked: dict[str, Any] = {"guide": guide, "gate": gate, "signals": ["reward"]}
    runs: list[Any] = []
    end = model.capture.finish_streams

    def counted(record: Any) -> None:
        runs.append(record)
        end(record)

    monkeypatch.setattr(model.capture, "finish_streams", counted)
    lazy, asleep = generate(model, PROMPTS[:1], sampling, **asked), len(runs)
    monkeypatch.setattr("otter_cli.decoding.session.supports_lazy_stream", lambda _: False)
    each, awake = generate(model, PROMPTS[:1], sampling, **asked), len(runs) - asleep
    assert asleep < awake and lazy[0].tokens == each[0].tokens != plain[0].tokens
    torch.testing.assert_close(
        torch.tensor(lazy[0].signals["reward"]), torch.tensor(each[0].signals["reward"])
    )


def test_none_at_a_time_is_refused(model: Any) -> None:
    with pytest.raises(OtterError, match="every 0 tokens"):
        generate(model, PROMPTS, DRAWN, signals=["reward"], read_every=0)
