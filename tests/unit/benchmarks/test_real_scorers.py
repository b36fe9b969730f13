"""Scores of models against the models themselves."""

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from otter_cli.benchmarks.models import load_reward_model
from otter_cli.benchmarks.scorers import Exchange
from otter_cli.benchmarks.scorers.reward_model import RewardModelScorer
from otter_cli.benchmarks.scorers.signal import SignalScorer
from tests.support.contestants import Contestants
from tests.unit.benchmarks.runs import Pair


def test_a_reward_models_score_is_its_own_on_the_whole_text(contestants: Contestants) -> None:
    scorer = RewardModelScorer(*load_reward_model(contestants.gold, device="cpu"))
    model = AutoModelForSequenceClassification.from_pretrained(contestants.gold).eval()
    tokenizer = AutoTokenizer.from_pretrained(contestants.gold)
    exchanges = [Exchange("a", "The cat", " sat"), Exchange("b", "Who", " is there, at night?")]
    with torch.no_grad():
        expected = [
            model(tokenizer(e.prompt + e.response + "</s>", return_tensors="pt").input_ids).logits
            for e in exchanges
        ]
    got = scorer.score(exchanges)["reward"]
    assert got == pytest.approx([float(e) for e in expected], abs=1e-6)
    assert [scorer.score([e])["reward"][0] for e in exchanges] == got


def test_a_signals_score_is_read_at_the_end(grafts: Pair) -> None:
    graft, _ = grafts
    scorer = SignalScorer(graft, "reward")
    prompt, response = (1, 5, 9, 33), (40, 12)
    ended = scorer.score([Exchange("a", "", "", prompt, (*response, 2))])["reward"]
    assert scorer.score([Exchange("a", "", "", prompt, response)])["reward"] == ended
    with torch.no_grad():
        out = graft.model(torch.tensor([[*prompt, *response, 2]]))
    assert ended == pytest.approx([out.signals["reward"][0, -1].item()], abs=1e-6)
