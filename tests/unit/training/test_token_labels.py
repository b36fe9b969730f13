"""`token-labels`: training on marked characters, and F1 of characters."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from otter_cli.core.errors import OtterError
from otter_cli.signals.config import SignalConfig
from otter_cli.training.objectives.token_labels import TokenLabels
from otter_cli.training.run import train
from tests.support.training import small_graft, small_recipe

SIGNAL = SignalConfig(name="toxicity", kind="classes", labels=("toxicity",))
SECTION = {"objective": "token-labels", "train": {"path": "marked.jsonl"}, "held_out": 0.25}


def _write_marked(folder: Path, rows: int = 64) -> None:
    """The word `zzz` is marked; other words are not."""
    lines = []
    for i in range(rows):
        words = ["abc", "bca", "cab", "zzz" if i % 3 else "acb", "bac"]
        words = words[i % 5 :] + words[: i % 5] + [f"a{i}"]
        text = " ".join(words)
        spans = [[text.index("zzz"), text.index("zzz") + 3]] if "zzz" in text else []
        lines.append(json.dumps({"text": text, "spans": spans}) + "\n")
    (folder / "marked.jsonl").write_text("".join(lines))


@pytest.mark.parametrize("baseline", [None, "head", "mha-probe", "reward-channel", "small"])
def test_it_learns_to_mark_a_word(tiny_llama: Path, tmp_path: Path, baseline: Any) -> None:
    folder = small_graft(tiny_llama, tmp_path / "graft", "toxicity")
    _write_marked(tmp_path)
    recipe = small_recipe(
        tmp_path, {"toxicity": SECTION}, steps=60, learning_rate=0.03, max_length=64
    )
    to = None if baseline is None else tmp_path / "to"
    metrics = train(folder, recipe, baseline=baseline, to=to).signals["toxicity"]
    assert metrics["char_f1"].mean > 0.8
    assert metrics["char_recall"].mean > 0.6


def _objective(**settings: Any) -> TokenLabels:
    return TokenLabels.model_validate({**SECTION, **settings})


def test_f1_is_that_of_the_shared_task() -> None:
    """A text without marked characters counts 1 if none is predicted, and 0 otherwise."""
    outcomes = {
        "predicted": np.array([[4.0], [0.0], [3.0], [0.0]]),
        "correct": np.array([[2.0], [0.0], [0.0], [0.0]]),
        "marked": np.array([[6.0], [0.0], [0.0], [5.0]]),
    }
    metrics = _objective().metrics(outcomes, SIGNAL)
    assert metrics["char_f1"].mean == pytest.approx((2 * 2 / 10 + 1 + 0 + 0) / 4)
    assert metrics["char_precision"].mean == pytest.approx(2 / 7)
    assert metrics["char_recall"].mean == pytest.approx(2 / 11)


def test_the_loss_is_the_mean_over_tokens_with_characters(tiny_tokenizer: Any) -> None:
    from otter_cli.data.spans import MarkedText

    objective = _objective(positive_weight=3.0)
    texts = [MarkedText("abc", (frozenset({1}),)), MarkedText("a", (frozenset(),))]
    batch = objective.encode(texts, tiny_tokenizer, 16).batch([0, 1])
    logits = torch.randn(*batch.input_ids.shape, 1, generator=torch.Generator().manual_seed(0))
    loss = objective.loss(lambda batch, at, tokens=None: logits[at], batch)
    assert batch.token_labels is not None
    each = [
        (-3 * torch.sigmoid(x).log() if label else -(1 - torch.sigmoid(x)).log())
        for x, label in zip(logits.flatten(), batch.token_labels.flatten(), strict=True)
        if label >= 0
    ]
    assert len(each) == 4, "BOS and padding hold no characters"
    assert loss.item() == pytest.approx(torch.stack(each).mean().item(), rel=1e-5)


def test_rows_without_a_marked_character_test_nothing(tmp_path: Path) -> None:
    from otter_cli.data.spans import MarkedText

    with pytest.raises(OtterError, match="no test row has a character marked as 'toxicity'"):
        _objective().check_test_rows([MarkedText("a", (frozenset(),))], SIGNAL, "test")


def test_each_class_needs_a_column(tmp_path: Path) -> None:
    _write_marked(tmp_path)
    objective = _objective()
    two = SignalConfig(name="toxicity", kind="classes", size=2, labels=("rude", "hate"))
    source = objective.train.model_copy(update={"spans": ("spans",)})
    with pytest.raises(OtterError, match="1 columns of spans; signal 'toxicity' has 2 classes"):
        objective.read_rows(source, tmp_path / "marked.jsonl", two)
