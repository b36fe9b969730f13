"""Signals read back from the three forms in which an engine's answer comes."""

import math
from pathlib import Path
from types import SimpleNamespace

import pytest

from otter_cli.core.errors import OtterError
from otter_cli.serving.vllm.client import SignalReader
from otter_cli.serving.vllm.requests import FIRST_VIRTUAL_ID

READER = SignalReader.from_signals("reward", "tone=classes:a,b")
# Two tokens: the chosen one, its signals, and one other.
STEPS = [
    {
        7: -0.5,
        FIRST_VIRTUAL_ID: 1.25,
        FIRST_VIRTUAL_ID + 1: 0.0,
        FIRST_VIRTUAL_ID + 2: math.log(3),
        9: -2.0,
    },
    {
        8: -0.1,
        FIRST_VIRTUAL_ID: -3.0,
        FIRST_VIRTUAL_ID + 1: -800.0,
        FIRST_VIRTUAL_ID + 2: 0.0,
        4: -3.0,
    },
]
EXPECTED = {"reward": [1.25, -3.0], "tone": [[0.5, pytest.approx(0.75)], [0.0, 0.5]]}


def test_a_completion() -> None:
    tables = [{f"token_id:{i}": value for i, value in step.items()} for step in STEPS]
    choice = SimpleNamespace(logprobs=SimpleNamespace(top_logprobs=tables))
    assert READER.read(choice) == EXPECTED


def test_a_chat() -> None:
    content = [
        SimpleNamespace(
            top_logprobs=[
                SimpleNamespace(token=f"token_id:{i}", logprob=value) for i, value in step.items()
            ]
        )
        for step in STEPS
    ]
    assert READER.read(SimpleNamespace(logprobs=SimpleNamespace(content=content))) == EXPECTED


def test_an_offline_output() -> None:
    tables = [{i: SimpleNamespace(logprob=v) for i, v in step.items()} for step in STEPS]
    assert READER.read(SimpleNamespace(logprobs=tables)) == EXPECTED


def test_an_answer_without_log_probabilities_has_no_signals() -> None:
    assert READER.read(SimpleNamespace(logprobs=None)) == {}


def test_scores_of_a_text_go_by_name() -> None:
    reader = SignalReader.from_signals("reward", "value=vocabulary:8", "tone=classes:a,b")
    found = reader.of_text([1.25, 0.0, math.log(3)])
    assert found == {"reward": 1.25, "tone": [0.5, pytest.approx(0.75)]}
    with pytest.raises(ValueError, match="shorter"):
        reader.of_text([1.25])


def test_what_is_asked_has_room_for_every_number() -> None:
    assert READER.completion(["tone", "reward"], logprobs=2)["logprobs"] == 5
    chat = READER.chat(["tone"], guide="q", strength=2.0)
    assert chat["top_logprobs"] == 3
    assert chat["extra_body"]["vllm_xargs"] == {
        "otter_signals": "tone", "otter_logprobs": False, "otter_guide": "q", "otter_strength": 2.0,
    }  # fmt: skip


def test_log_probabilities_are_asked_for_by_those_who_want_them() -> None:
    def asked(**logprobs: int) -> tuple[int, bool]:
        keywords = READER.sampling(["reward"], **logprobs)
        return keywords["logprobs"], keywords["extra_args"]["otter_logprobs"]

    assert asked() == (1, False) and asked(logprobs=0) == (1, True)
    assert asked(logprobs=2) == (3, True)
    assert READER.completion(guide="q", strength=1.0)["logprobs"] is None
    assert "logprobs" not in READER.chat(guide="q", strength=1.0)


def test_an_unknown_signal_is_refused_before_the_request() -> None:
    with pytest.raises(OtterError, match="no signal 'tune'"):
        READER.chat(["tune"])


def test_a_folder_that_is_no_export_is_refused(tiny_llama: Path) -> None:
    with pytest.raises(OtterError, match="no export for vLLM"):
        SignalReader.from_folder(tiny_llama)
