"""Wide heads, the control of equal parameters for future tokens."""

from pathlib import Path

import pytest
import torch

from otter_cli.core.errors import OtterError
from otter_cli.data.batches import real_tokens
from otter_cli.data.datasets import pad_batch
from otter_cli.decoding.generate import generate
from otter_cli.decoding.sampling import Sampling
from otter_cli.decoding.speculative.drafters import FutureDrafter
from otter_cli.graft.manifest import Manifest
from otter_cli.model.otter import OtterForCausalLM
from otter_cli.training.baselines import make_trainable
from otter_cli.training.baselines.readouts import WIDE_HEADS_FILE, WideHeadsTrainable
from otter_cli.training.run import train
from tests.support.training import FUTURE, ctrl_c_in_step, small_graft, small_recipe
from tests.support.training_kills import same_tensors

BATCH = pad_batch([[1, 5, 6, 7, 2], [1, 5, 2]], 0)


@pytest.fixture
def graft(tiny_llama: Path, tmp_path: Path) -> Path:
    return small_graft(tiny_llama, tmp_path / "graft", "future:2,plain")


@pytest.mark.parametrize("signal", ["future:2,plain", "future:2,24"])
def test_they_have_the_parameters_of_the_graft(
    tiny_llama: Path, tmp_path: Path, signal: str
) -> None:
    graft = small_graft(tiny_llama, tmp_path / "graft", signal)
    recipe = small_recipe(tmp_path, {"future": FUTURE}, steps=2)
    wide = train(graft, recipe, baseline="wide", to=tmp_path / "wide")
    inserted = train(graft, recipe)
    assert wide.trained_parameters == pytest.approx(inserted.trained_parameters, rel=0.02)


def test_a_wider_cell_reads_the_base_alone_and_drafts(tiny_llama: Path, tmp_path: Path) -> None:
    graft = small_graft(tiny_llama, tmp_path / "graft", "future:2,24")
    recipe = small_recipe(tmp_path, {"future": FUTURE}, steps=30, learning_rate=0.02)
    result = train(graft, recipe, baseline="wide", to=tmp_path / "wide")
    (config,) = Manifest.read(tmp_path / "wide").insertions
    assert config.hidden == 0 and config.signals[0].width > 24
    figures = result.signals["future"]
    assert figures["top1_t+3"].mean > 0.4 and figures["run"].mean > 0.8
    model = OtterForCausalLM.from_pretrained(tmp_path / "wide")
    plain, drafted = (
        generate(model, [[5, 6, 7]], Sampling(12, ignore_eos=True), drafter=drafter)[0]
        for drafter in (None, FutureDrafter())
    )
    assert drafted.tokens == plain.tokens


def test_each_head_is_a_residual_block_before_the_unembedding(graft: Path, tmp_path: Path) -> None:
    recipe = small_recipe(tmp_path, {"future": FUTURE}, baselines={"wide": {"width": 12}})
    trainable = make_trainable(graft, recipe, "wide", tmp_path / "wide", "cpu")
    assert isinstance(trainable, WideHeadsTrainable)
    with torch.no_grad():
        trainable.parameters["out"].normal_(0, 0.1, generator=torch.Generator().manual_seed(0))
        at = real_tokens(BATCH)
        said = trainable.reader("future")(BATCH, at)
        model = trainable.model
        out = model(BATCH.input_ids, attention_mask=BATCH.attention_mask, output_hidden_states=True)
        y = out.hidden_states[-1][at].double()
        for head in range(2):
            first, second = (trainable.parameters[part][head].double() for part in ("in", "out"))
            inner = y @ first.T
            state = y + (inner * torch.sigmoid(inner)) @ second.T
            logits = state @ model.lm_head.weight.double().T
            assert torch.allclose(said[:, head].double(), logits, atol=1e-4)


@pytest.mark.parametrize("targets", ["text", "base"])
def test_they_learn_and_resume_to_the_bit(graft: Path, tmp_path: Path, targets: str) -> None:
    section = {**FUTURE, "targets": targets}
    recipe = small_recipe(tmp_path, {"future": section}, steps=30, learning_rate=0.02)
    result = train(graft, recipe, baseline="wide", to=tmp_path / "one")
    if targets == "text":
        assert result.signals["future"]["top1_t+2"].mean > 0.4
    with ctrl_c_in_step(11):
        train(graft, recipe, baseline="wide", to=tmp_path / "two")
    train(graft, recipe, baseline="wide", to=tmp_path / "two", resume=True)
    same_tensors(tmp_path / "one" / WIDE_HEADS_FILE, tmp_path / "two" / WIDE_HEADS_FILE)
    assert not Manifest.read(graft).training


def test_a_score_of_texts_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(OtterError, match="wide heads name future tokens; signal 'reward'"):
        train(folder, small_recipe(tmp_path), baseline="wide", to=tmp_path / "wide")
