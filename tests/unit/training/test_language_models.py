"""Language models of one kind of text: experts in an insertion, and as LoRA adapters beside it."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from otter_cli.core.errors import OtterError
from otter_cli.data.batches import real_tokens
from otter_cli.data.datasets import pad_batch
from otter_cli.scorers.load import load_language_model
from otter_cli.training.baselines import make_trainable
from otter_cli.training.objectives.plain_text import LanguageModel
from otter_cli.training.run import train
from tests.support.training import ctrl_c_in_step, small_graft, small_recipe
from tests.support.training_kills import same_tensors

EXPERT = {"objective": "language-model", "train": {"path": "texts.jsonl"}, "held_out": 0.2}
PAIRS = {"objective": "autoregressive", "train": {"path": "pairs.jsonl"}, "held_out": 0.2}
# As blocks come: no padding.
BATCH = pad_batch([[1, 5, 6, 7, 2], [1, 5, 9, 8, 2]], 0)


@pytest.fixture
def graft(tiny_llama: Path, tmp_path: Path) -> Path:
    return small_graft(tiny_llama, tmp_path / "graft", "q=action-reward")


def _stock_loss(model: Any) -> float:
    """transformers' own, of the mean token."""
    with torch.no_grad():
        return float(model(BATCH.input_ids, labels=BATCH.input_ids).loss)


@pytest.mark.parametrize("baseline", [None, "language-model"])
def test_an_untrained_expert_is_the_base(
    graft: Path, tiny_llama: Path, tmp_path: Path, baseline: Any
) -> None:
    recipe = small_recipe(tmp_path, {"q": EXPERT})
    trainable = make_trainable(graft, recipe, baseline, tmp_path / "to", "cpu")
    loss = recipe.signals["q"].loss(trainable.reader("q"), BATCH)
    assert loss.item() == pytest.approx(
        _stock_loss(load_language_model(tiny_llama, device="cpu").model)
    )


def test_an_inserted_expert_is_what_it_adds_to_the_base(graft: Path, tmp_path: Path) -> None:
    recipe = small_recipe(tmp_path, {"q": EXPERT}, steps=40, learning_rate=0.02)
    before = {p.name: p.read_bytes() for p in graft.glob("model*.safetensors")}
    result = train(graft, recipe)
    assert result.signals["q"]["nats"].mean < 2.0  # of the 48 tokens' 3.9
    trainable = make_trainable(graft, recipe, None, None, "cpu")
    with torch.no_grad():
        loss = recipe.signals["q"].loss(trainable.reader("q"), BATCH)
        out = trainable.model(BATCH.input_ids)
    logits = (out.logits + out.signals["q"])[:, :-1].double()
    expected = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), BATCH.input_ids[:, 1:].flatten()
    )
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert {p.name: p.read_bytes() for p in graft.glob("model*.safetensors")} == before


@pytest.mark.parametrize("objective", [EXPERT, PAIRS])
def test_the_folder_is_an_adapter_that_peft_loads(
    graft: Path, tiny_llama: Path, tmp_path: Path, objective: dict[str, Any]
) -> None:
    recipe, to = small_recipe(tmp_path, {"q": objective}, steps=8), tmp_path / "to"
    train(graft, recipe, baseline="language-model", to=to)
    loaded = load_language_model(to, device="cpu").model
    trainable = make_trainable(graft, recipe, "language-model", to, "cpu")
    # A new trainable begins at the base: what was trained is in the folder alone.
    own = {n.replace(".default", ""): p for n, p in trainable.parameters.items()}
    saved = load_file(to / "adapter_model.safetensors")
    assert saved.keys() == own.keys()
    with torch.no_grad():
        for name, tensor in saved.items():
            own[name].copy_(tensor)
        ours = trainable.reader("q")(BATCH, real_tokens(BATCH))
        theirs = loaded(BATCH.input_ids).logits.flatten(0, 1)
        base = load_language_model(tiny_llama, device="cpu").model(BATCH.input_ids).logits
    assert torch.allclose(ours, theirs, atol=1e-5)
    assert (theirs - base.flatten(0, 1)).abs().max() > 1e-3
    if objective is EXPERT:
        loss = LanguageModel.model_validate(EXPERT).loss(trainable.reader("q"), BATCH)
        assert loss.item() == pytest.approx(_stock_loss(loaded), rel=1e-5)


def test_it_learns_and_resumes_to_the_bit(graft: Path, tmp_path: Path) -> None:
    recipe = small_recipe(tmp_path, {"q": EXPERT}, steps=40, learning_rate=0.02)
    before = {p.name: p.read_bytes() for p in graft.iterdir()}
    one, two = tmp_path / "one", tmp_path / "two"
    result = train(graft, recipe, baseline="language-model", to=one)
    assert result.signals["q"]["nats"].mean < 2.0
    with ctrl_c_in_step(25):
        train(graft, recipe, baseline="language-model", to=two)
    train(graft, recipe, baseline="language-model", to=two, resume=True)
    same_tensors(one / "adapter_model.safetensors", two / "adapter_model.safetensors")
    assert {p.name: p.read_bytes() for p in graft.iterdir()} == before


def test_a_score_of_texts_is_no_language_model(folder: Path, tmp_path: Path) -> None:
    recipe = small_recipe(tmp_path)
    with pytest.raises(OtterError, match="'reward' is of kind value") as raised:
        train(folder, recipe, baseline="language-model", to=tmp_path / "to")
    assert raised.value.hint is not None and "separate" in raised.value.hint
    wrong = small_recipe(tmp_path, {"reward": EXPERT})
    with pytest.raises(OtterError, match="language-model trains vocabulary"):
        train(folder, wrong)
