"""Requests are checked before anything runs, and errors use the base's own terms."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification

from otter_cli.core.errors import OtterError
from otter_cli.decoding.generate import generate
from otter_cli.decoding.guides.external_models import ArgsGuide
from otter_cli.decoding.guides.signal_guides import SignalGuide
from otter_cli.decoding.sampling import Sampling
from otter_cli.decoding.speculative.drafters import FutureDrafter, PromptLookup
from otter_cli.graft.grafted_folder import update_tensors
from otter_cli.graft.manifest import Manifest
from otter_cli.model.otter import OtterForCausalLM
from tests.support.grafts import plan_for, random_graft

PROMPT = [[5, 9, 33, 40, 12]]
SHORT = Sampling(max_new_tokens=4)


@pytest.fixture(scope="module")
def model(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = random_graft(tiny_llama, tmp_path_factory.mktemp("g") / "g", hidden=8, heads=2, ffn=16)
    return OtterForCausalLM.from_pretrained(folder)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_new_tokens", 0),
        ("temperature", -0.5),
        ("temperature", float("nan")),
        ("temperature", float("inf")),
        ("top_k", -1),
        ("top_p", 0.0),
        ("top_p", 1.5),
        ("top_p", float("nan")),
    ],
)
def test_sampling_without_meaning(name: str, value: float) -> None:
    with pytest.raises(OtterError, match=name) as caught:
        Sampling(**{name: value})  # type: ignore[arg-type]
    assert "must be" in caught.value.hint


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"guide": SignalGuide("rewrd", 1.0)}, "'rewrd'"),
        ({"guide": SignalGuide("rewrd", 0.0)}, "'rewrd'"),
        ({"guide": SignalGuide("future", 1.0)}, "predicts tokens"),
        ({"guide": SignalGuide("toxicity", 1.0, label="kind")}, "no label 'kind'"),
        ({"guide": SignalGuide("reward", 1.0, 0)}, "0 candidates"),
        ({"guide": SignalGuide("reward", 1.0, 98)}, "98 candidates, of a vocabulary of 97"),
        ({"guide": SignalGuide("reward", float("nan"))}, "strength is nan"),
        ({"drafter": FutureDrafter("reward")}, "no future signal"),
        ({"drafter": FutureDrafter("futur")}, "no future signal"),
        ({"signals": ("future",)}, "predicts tokens"),
        ({"signals": ("toxcity",)}, "'toxcity'"),
    ],
)
def test_requests_that_cannot_be_met(
    model: Any, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], words: str
) -> None:
    """Refused before the prompt is fed, which may take long."""
    monkeypatch.setattr(model.base, "forward", None)
    monkeypatch.setattr(model.base.model, "forward", None)
    with pytest.raises(OtterError) as caught:
        generate(model, PROMPT, SHORT, **options)
    assert words in caught.value.what and caught.value.hint


def test_prompts_must_fit_the_window(model: Any) -> None:
    with pytest.raises(OtterError, match="window of 128"):
        generate(model, [[5] * 125], SHORT)
    assert len(generate(model, [[5] * 124], SHORT)[0].tokens) <= 4
    for empty in ([], [[]], [[5], []]):
        with pytest.raises(OtterError, match="empty prompt"):
            generate(model, empty, SHORT)


def test_a_reward_model_of_another_vocabulary_or_of_many_numbers(
    model: Any, tiny_checkpoint: Any
) -> None:
    load = AutoModelForSequenceClassification.from_pretrained
    others = tiny_checkpoint("llama", vocab_size=101)
    for folder, labels, words in ((others, 1, "101 tokens"), (tiny_checkpoint("llama"), 2, "2 nu")):
        reward_model = load(folder, num_labels=labels)
        with pytest.raises(OtterError, match=words):
            generate(model, PROMPT, SHORT, guide=ArgsGuide(reward_model, 1.0))


def test_a_reward_that_is_no_number_is_an_error(tiny_llama: Path, tmp_path: Path) -> None:
    """An argmax over NaN chooses NaN: without the check, the text is random and no error tells."""
    folder = random_graft(tiny_llama, tmp_path / "g", hidden=8, heads=2, ffn=16)
    plan = plan_for(tiny_llama, hidden=8, heads=2, ffn=16)
    model = OtterForCausalLM.from_pretrained(folder)
    values = {name: t.numpy().copy() for name, t in model.inserted_state_dict().items()}
    values["otter.main.signals.reward.bias"][:] = np.nan
    update_tensors(folder, [plan], Manifest.read(folder), values)
    poisoned = OtterForCausalLM.from_pretrained(folder)
    with pytest.raises(OtterError, match="not finite"):
        generate(poisoned, PROMPT, SHORT, guide=SignalGuide("reward", 1.0))
    # The base is unharmed.
    plain, beside = (
        generate(poisoned, PROMPT, SHORT, signals=signals)[0].tokens
        for signals in ((), ("reward",))
    )
    assert plain == beside


def test_drafts_stay_within_a_table_of_positions(tiny_checkpoint: Any, tmp_path: Path) -> None:
    """Rows that have ended are still fed: position 128 of 128 would be an index error."""
    base = tiny_checkpoint("gpt2", num_key_value_heads=4)
    folder = random_graft(base, tmp_path / "g", hidden=8, heads=2, ffn=16)
    model = OtterForCausalLM.from_pretrained(folder, dtype=torch.float64)
    sampling = Sampling(max_new_tokens=28, ignore_eos=True)
    prompts = [[5, 6, 7, 8] * 25, [9, 33, 12, 50] * 25, [60, 61, 62]]
    plain = generate(model, prompts, sampling)
    drafted = generate(model, prompts, sampling, drafter=PromptLookup(2, 8))
    assert [row.tokens for row in drafted] == [row.tokens for row in plain]
