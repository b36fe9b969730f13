"""What the insertion must not do in an engine: change a token or a log-probability."""

import math
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from otter_cli.serving.vllm.requests import FIRST_VIRTUAL_ID
from tests.vllm.conftest import Ask
from tests.vllm.support import NUMBERS, mixed_prompts, requests, without_signals

PROMPTS, TOKENS = 200, 16
WAYS = {
    "greedy": {"temperature": 0.0},
    "sampled": {"temperature": 0.9, "top_p": 0.95, "top_k": 50},
    "penalised": {"temperature": 0.7, "presence_penalty": 0.5, "repetition_penalty": 1.2},
}
SIGNAL_NAMES = {"otter_signals": "reward,toxicity,tone,value"}
STRENGTH_0 = {"otter_guide": "value", "otter_strength": 0.0}


@pytest.fixture(scope="module")
def prompts(shared: Path, base: Path) -> list[list[int]]:
    return mixed_prompts(shared, AutoTokenizer.from_pretrained(base), PROMPTS)


def asked(prompts: list[list[int]], logprobs: int, **more: Any) -> list[Any]:
    return [
        requests(prompts, max_tokens=TOKENS, logprobs=logprobs, **way, **more)
        for way in WAYS.values()
    ]


def chosen(row: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Without the best others: the sampled token comes first."""
    return [{**one, "logprobs": [step[:1] for step in one["logprobs"]]} for one in row]


@pytest.fixture(scope="module")
def stock(base: Path, prompts: list[list[int]], engine: Ask) -> list[Any]:
    answer = engine(base, asked(prompts, 3))
    return [one["rows"] for one in answer["passes"]]


@pytest.mark.parametrize("kv", ["base", "own"])
def test_an_engine_with_the_insertion_says_what_stock_says(
    kv: str, served: dict[str, Path], prompts: list[list[int]], stock: list[Any], engine: Ask
) -> None:
    plain = asked(prompts, 3)
    with_signals = asked(prompts, 3 + NUMBERS, extra_args=SIGNAL_NAMES)
    unguided = asked(prompts, 3, extra_args=STRENGTH_0)
    alone = asked(prompts, NUMBERS, extra_args=SIGNAL_NAMES)
    silent = asked(prompts, NUMBERS, extra_args={**SIGNAL_NAMES, "otter_logprobs": False})
    asks = [with_signals, silent, plain]
    mixed = [[asks[i % 3][w][i] for i in range(PROMPTS)] for w in range(len(WAYS))]
    answer = engine(served[kv], [*plain, *with_signals, *unguided, *alone, *silent, *mixed])
    found = [one["rows"] for one in answer["passes"]]
    count = len(WAYS)
    assert found[:count] == stock
    assert found[2 * count : 3 * count] == stock
    for mine, theirs in zip(found[3 * count : 4 * count], stock, strict=True):
        assert [without_signals(row) for row in mine] == [chosen(row) for row in theirs]
    for mine, theirs in zip(found[count : 2 * count], stock, strict=True):
        assert [without_signals(row) for row in mine] == theirs
    # Without log-probabilities, tokens and signals are the same, whatever else is in the batch.
    for mine, theirs in zip(
        found[4 * count : 5 * count], found[3 * count : 4 * count], strict=True
    ):
        assert mine == [[declined(one) for one in row] for row in theirs]
    for way, mine in enumerate(found[5 * count :]):
        apart = [found[part * count + way] for part in (1, 4, 0)]
        for i, row in enumerate(mine):
            assert without_signals(row) == without_signals(apart[i % 3][i])
            # A head's product over fewer rows may be rounded otherwise.
            assert numbers(row) == pytest.approx(numbers(apart[i % 3][i]), abs=1e-5)


def numbers(row: list[dict[str, Any]]) -> list[float]:
    steps = [step for choice in row for step in choice["logprobs"]]
    return [value for step in steps for place, value in step if place >= FIRST_VIRTUAL_ID]


def declined(choice: dict[str, Any]) -> dict[str, Any]:
    """A choice with numbers, had it asked for no log-probabilities."""
    steps = [[[step[0][0], -math.inf], *step[1:]] for step in choice["logprobs"]]
    return {**choice, "logprobs": steps}


def test_who_names_tokens_has_their_log_probabilities_beside_those_who_ask_for_numbers(
    base: Path, served: dict[str, Path], prompts: list[list[int]], engine: Ask
) -> None:
    """vLLM's `logprob_token_ids`: then the whole batch has a table as wide as these."""
    few, labels = prompts[:12], {"logprob_token_ids": [5, 7]}
    sampling = {"max_tokens": 4, "temperature": 0.0}
    named = requests(few, **sampling, **labels)
    numbers_too = {"logprobs": NUMBERS, "extra_args": SIGNAL_NAMES}
    silent = {**numbers_too, "extra_args": {**SIGNAL_NAMES, "otter_logprobs": False}}
    (stock,) = engine(base, [named])["passes"]
    for more in numbers_too, silent:
        asking = requests(few, **sampling, **more)
        batch = [(named, asking)[i % 2][i] for i in range(len(few))]
        mixed, alone = engine(served["base"], [batch, asking])["passes"]
        assert mixed["rows"][::2] == stock["rows"][::2]
        for mine, theirs in zip(mixed["rows"][1::2], alone["rows"][1::2], strict=True):
            assert numbers(mine) == pytest.approx(numbers(theirs), abs=1e-5)
            assert without_signals(mine) == without_signals(theirs)
