"""The base that ships: small, whole, loadable by stock transformers, and fluent."""

import json
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from otter_cli.demo import BASE
from otter_cli.demo.train_base import LEARNING_RATE, ROWS_PER_STEP, STEPS, TEXTS, mean_loss, rows_of
from otter_cli.demo.world import World, gold_score, toxicity_labels


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(BASE)


@pytest.fixture(scope="module")
def base() -> Any:
    model, report = AutoModelForCausalLM.from_pretrained(BASE, output_loading_info=True)
    assert not any(report.values()), report
    return model.eval()


@pytest.fixture(scope="module")
def answers(base: Any, tokenizer: Any) -> list[tuple[str, str]]:
    """Prompts of the test split, each with an answer sampled at temperature 1."""
    prompts = World(21, "test").prompts(150)
    batch = tokenizer(prompts, return_tensors="pt", padding=True, padding_side="left")
    torch.manual_seed(0)
    written = base.generate(**batch, max_new_tokens=110, do_sample=True, top_k=0)
    texts = tokenizer.batch_decode(written[:, batch.input_ids.shape[1] :], skip_special_tokens=True)
    return list(zip(prompts, texts, strict=True))


def test_the_folder_is_under_two_megabytes() -> None:
    assert sum(path.stat().st_size for path in BASE.iterdir()) < 1_950_000


def test_the_script_as_it_stands_is_the_one_that_wrote_it() -> None:
    card = json.loads((BASE / "PROVENANCE.json").read_text())
    settings = [card[name] for name in ("steps", "texts", "rows_per_step", "learning_rate")]
    assert settings == [STEPS, TEXTS, ROWS_PER_STEP, LEARNING_RATE]


def test_nothing_pickled_ships() -> None:
    assert {path.suffix for path in BASE.iterdir()} == {".json", ".safetensors"}


def test_every_tensor_is_there_and_is_fp32(base: Any) -> None:
    assert {parameter.dtype for parameter in base.parameters()} == {torch.float32}
    assert base.config.head_dim == 32
    assert base.lm_head.weight is base.model.embed_tokens.weight


def test_the_tokenizer_gives_any_text_back(tokenizer: Any) -> None:
    for text in (*World(22).texts(20), "Zoë paid 5 € for naïve 文字 \t\n  twice  !"):
        ids = tokenizer(text).input_ids
        assert ids[0] == tokenizer.bos_token_id and tokenizer.decode(ids[1:]) == text


def test_held_out_text_is_as_likely_as_the_card_says(base: Any, tokenizer: Any) -> None:
    card = json.loads((BASE / "PROVENANCE.json").read_text())
    rows = rows_of(tokenizer.backend_tokenizer, World(23, "test").texts(300))
    loss = mean_loss(base, rows)
    assert loss == pytest.approx(card["held_out_loss"], abs=0.02)
    assert loss < 0.30


@pytest.mark.slow
def test_answers_are_rude_about_half_of_the_time(answers: list[tuple[str, str]]) -> None:
    rude = sum(toxicity_labels(text)["toxicity"] for _, text in answers) / len(answers)
    assert 0.38 < rude < 0.65


@pytest.mark.slow
def test_answers_end_and_vary(answers: list[tuple[str, str]]) -> None:
    texts = [text for _, text in answers]
    assert sum(text.endswith(".") for text in texts) > 0.95 * len(texts)
    assert len(set(texts)) > 0.95 * len(texts)


@pytest.mark.slow
def test_the_gold_rule_tells_answers_apart(answers: list[tuple[str, str]]) -> None:
    scores = [gold_score(prompt, text) for prompt, text in answers]
    assert len(set(scores)) >= 5 and min(scores) < 0 < max(scores)
