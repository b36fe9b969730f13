"""Scores of models against the models themselves."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from otter_cli.core.errors import OtterError
from otter_cli.scorers.load import load_reward_model
from otter_cli.scorers.response_models import RewardModelScorer, SignalScorer
from otter_cli.scorers.scorer import Exchange
from tests.support.benchmark_models import BenchmarkModels
from tests.support.chat_tokenizers import TEMPLATES, chat_tokenizer, said
from tests.unit.benchmarks.benchmark_runs import Pair


def test_a_reward_models_score_is_its_own_on_the_whole_text(contestants: BenchmarkModels) -> None:
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


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("ended", [True, False])
def test_a_dialogue_is_scored_as_its_template_ends_it(
    contestants: BenchmarkModels, grafts: Pair, tiny_tokenizer: Any, template: str, ended: bool
) -> None:
    """By the graft on its generated tokens, by a reward model on its own reading of the text: both
    at the token that a training text is read at."""
    tokenizer = chat_tokenizer(tiny_tokenizer, TEMPLATES[template], adds_bos=False)
    prompt = tokenizer.apply_chat_template(
        said("hi"), tokenize=True, return_dict=False, add_generation_prompt=True
    )
    whole = tokenizer.apply_chat_template(said("hi", "yo"), tokenize=True, return_dict=False)
    eos = tokenizer.eos_token_id
    if eos in whole:
        whole = whole[: len(whole) - whole[::-1].index(eos)]
    response = [*tokenizer("yo", add_special_tokens=False)["input_ids"], *[eos][: int(ended)]]
    exchange = Exchange("a", "", "yo", tuple(prompt), tuple(response), messages=tuple(said("hi")))
    graft = replace(grafts[0], tokenizer=tokenizer)
    with torch.no_grad():
        of_graft = graft.model(torch.tensor([whole])).signals["reward"][0, -1].item()
    assert SignalScorer(graft, "reward").score([exchange])["reward"] == pytest.approx(
        [of_graft], abs=1e-6
    )
    model, _, record = load_reward_model(contestants.gold, device="cpu")
    with torch.no_grad():
        expected = float(model(torch.tensor([whole])).logits)
    scorer = RewardModelScorer(model, tokenizer, record)
    assert scorer.score([exchange])["reward"] == pytest.approx([expected], abs=1e-6)


def test_a_reward_model_without_a_template_reads_no_dialogue(contestants: BenchmarkModels) -> None:
    scorer = RewardModelScorer(*load_reward_model(contestants.gold, device="cpu"))
    exchange = Exchange("a", "", "yo", messages=tuple(said("hi")))
    with pytest.raises(OtterError, match="gold: the tokenizer has no chat template"):
        scorer.score([exchange])
