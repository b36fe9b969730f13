"""The separate model is a stock sequence classifier, and what is trained is what it says."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from otter_cli.core.errors import OtterError
from otter_cli.data.batches import last_tokens
from otter_cli.data.datasets import pad_batch
from otter_cli.signals.config import SignalConfig, parse_signal
from otter_cli.training.baselines.separate import (
    HEAD_WEIGHT,
    SeparateTrainable,
    classifier_config,
    create_separate,
)

BATCH = pad_batch([[1, 5, 6, 7, 2], [1, 5, 2]], 0)


def _separate(base: Path, to: Path, signal: str) -> tuple[SeparateTrainable, SignalConfig]:
    parsed = parse_signal(signal)
    create_separate(base, to, parsed)
    return SeparateTrainable(to, parsed), parsed


@pytest.mark.parametrize("signal", ["reward", "classes:rude,loud"])
@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3"])
def test_the_stock_class_gives_the_scores_that_were_trained(
    tiny_checkpoint, tmp_path: Path, family: str, signal: str
) -> None:
    trainable, parsed = _separate(tiny_checkpoint(family), tmp_path / "separate", signal)
    with torch.no_grad():
        trainable.parameters[HEAD_WEIGHT].normal_(generator=torch.Generator().manual_seed(0))
        trainable.write({})
        ours = trainable.reader(parsed.name)(BATCH, last_tokens(BATCH))
        stock = AutoModelForSequenceClassification.from_pretrained(tmp_path / "separate")
        theirs = stock(BATCH.input_ids, attention_mask=BATCH.attention_mask).logits
    # Batches end in EOS: a padding id equal to it would make the stock class read elsewhere.
    assert torch.allclose(ours.view(2, -1), theirs, atol=1e-5)
    assert stock.dtype == torch.float32
    labels = parsed.labels or (parsed.name,)
    assert stock.config.id2label == dict(enumerate(labels))


def test_it_starts_as_the_base_with_a_head_of_zeros(tiny_llama: Path, tmp_path: Path) -> None:
    trainable, _ = _separate(tiny_llama, tmp_path / "separate", "reward")
    from otter_cli.model.load import load_base

    base = dict(load_base(tiny_llama).named_parameters())
    base.pop("lm_head.weight")
    parameters = dict(trainable.parameters)
    assert torch.equal(parameters.pop(HEAD_WEIGHT), torch.zeros(1, 32))
    assert parameters.keys() == base.keys()
    assert all(torch.equal(parameters[name], base[name]) for name in base)


def test_every_weight_gets_a_gradient(tiny_llama: Path, tmp_path: Path) -> None:
    trainable, _ = _separate(tiny_llama, tmp_path / "separate", "reward")
    with torch.no_grad():
        trainable.parameters[HEAD_WEIGHT].fill_(0.1)
    trainable.reader("reward")(BATCH, last_tokens(BATCH)).sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in trainable.parameters.values())


def test_the_tokenizer_is_copied_byte_for_byte(tiny_llama: Path, tmp_path: Path) -> None:
    _separate(tiny_llama, tmp_path / "separate", "reward")
    copied = {p.name: p.read_bytes() for p in (tmp_path / "separate").iterdir() if p.is_file()}
    for path in tiny_llama.glob("tokenizer*"):
        assert copied[path.name] == path.read_bytes()
    assert "generation_config.json" not in copied


def test_the_configuration_keeps_what_it_does_not_have_to_change(tiny_llama: Path) -> None:
    config = json.loads((tiny_llama / "config.json").read_text())
    made = classifier_config(config, "LlamaForCausalLM", parse_signal("reward"))
    changed = {key for key in made if made[key] != config.get(key)}
    assert changed == {"architectures", "id2label", "label2id", "problem_type"}


@pytest.mark.parametrize(
    ("config", "pad"),
    [
        ({"pad_token_id": 0, "eos_token_id": 2}, 0),
        ({"pad_token_id": 2, "bos_token_id": 1, "eos_token_id": 2}, 1),
        ({"bos_token_id": 1, "eos_token_id": [2, 3]}, 1),
        ({"pad_token_id": 2, "bos_token_id": 2, "eos_token_id": 2}, None),
    ],
)
def test_eos_is_never_padding(config: dict, pad: int | None) -> None:
    made = classifier_config(config, "LlamaForCausalLM", parse_signal("reward"))
    assert made["pad_token_id"] == pad


def test_future_tokens_are_no_score_of_a_text(tiny_llama: Path, tmp_path: Path) -> None:
    with pytest.raises(OtterError, match="cannot give signal 'future'"):
        create_separate(tiny_llama, tmp_path / "separate", parse_signal("future:2"))


def test_a_model_that_is_not_whole_is_refused(tiny_llama: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    create_separate(tiny_llama, tmp_path / "separate", parse_signal("reward"))
    weights = tmp_path / "separate" / "model.safetensors"
    tensors = load_file(weights)
    del tensors[HEAD_WEIGHT]
    save_file(tensors, weights, {"format": "pt"})
    with pytest.raises(OtterError, match=r"missing keys: score\.weight"):
        SeparateTrainable(tmp_path / "separate", parse_signal("reward"))
