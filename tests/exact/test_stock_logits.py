"""Against the base as users load it, not frozen: the same bits where only some positions are
asked for, as `generate` does."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from otter_cli.model.otter import OtterForCausalLM
from tests.support.grafts import random_graft

TOKENS = torch.arange(3, 51).view(4, 12)


@pytest.fixture(scope="module")
def models(
    tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Any, OtterForCausalLM]:
    folder = random_graft(tiny_llama, tmp_path_factory.mktemp("stock") / "graft", hidden=8)
    stock = AutoModelForCausalLM.from_pretrained(tiny_llama).eval()
    assert next(stock.parameters()).requires_grad
    return stock, OtterForCausalLM.from_pretrained(folder)


@pytest.mark.parametrize("keep", [1, 3, torch.tensor([2, 5])])
def test_logits_of_some_positions(models: tuple[Any, OtterForCausalLM], keep: Any) -> None:
    stock, model = models
    with torch.no_grad():
        expected = stock(TOKENS, logits_to_keep=keep).logits
        assert torch.equal(model(TOKENS, logits_to_keep=keep).logits, expected)
        assert torch.equal(model.base(TOKENS, logits_to_keep=keep).logits, expected)


def test_generate_in_a_batch(models: tuple[Any, OtterForCausalLM]) -> None:
    stock, model = models
    options = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    told = {"output_logits": True, "return_dict_in_generate": True}
    expected = stock.generate(TOKENS, **options, **told)
    with model.streaming():
        found = model.base.generate(TOKENS, **options, **told)
    assert torch.equal(found.sequences, expected.sequences)
    assert torch.equal(torch.stack(found.logits), torch.stack(expected.logits))


def test_the_head_is_frozen_again_afterwards_and_whenever_gradients_are_on(
    models: tuple[Any, OtterForCausalLM],
) -> None:
    _, model = models
    weight = model.base.lm_head.weight
    out = model(TOKENS, logits_to_keep=1)
    loss = model.lm_head(next(iter(out.inserted_state.values())).new_ones(1, 32)).sum()
    assert not loss.requires_grad and not weight.requires_grad
    with torch.no_grad(), pytest.raises(RuntimeError):
        model.lm_head(torch.ones(1, 7))
    assert not weight.requires_grad and weight.grad is None
