"""A graft in training: what gets a gradient, what is read, what is refused."""

from pathlib import Path
from typing import Any

import pytest
import torch

from otter_cli.core.errors import OtterError
from otter_cli.data.batches import last_tokens, real_tokens
from otter_cli.data.datasets import pad_batch
from otter_cli.model.otter import OtterForCausalLM
from otter_cli.training.optimiser import GRADIENT_STEPS, TrainingGuard, make_optimiser
from otter_cli.training.trainable import GraftTrainable
from tests.support.training import FUTURE, REWARD, TOXICITY, small_graft, small_recipe

BATCH = pad_batch([[1, 5, 6, 7, 2], [1, 5, 2], [1, 8, 8, 2], [1, 9, 5, 6, 2]], 0)


def _backward(trainable: GraftTrainable, recipe: Any, signal: str = "reward") -> None:
    recipe.signals[signal].loss(trainable.reader(signal), BATCH).backward()


def test_only_the_insertion_and_trained_heads_require_gradients(
    tiny_llama: Path, tmp_path: Path
) -> None:
    folder = small_graft(tiny_llama, tmp_path / "graft", "reward", "toxicity")
    trainable = GraftTrainable(folder, small_recipe(tmp_path))
    demanding = {name for name, p in trainable.model.named_parameters() if p.requires_grad}
    assert len(demanding) == len(trainable.parameters)
    assert not any(name.startswith("base.") for name in demanding)
    assert "otter.main.signals.reward.base" in trainable.parameters
    assert "otter.main.embedding.weight" in trainable.parameters
    assert not any("toxicity" in name for name in trainable.parameters), "the recipe has none"
    assert "otter.main.signals.reward.bias" not in trainable.parameters, "it cancels in a pair"


def test_no_gradient_ever_exists_on_the_base(folder: Path, tmp_path: Path) -> None:
    recipe = small_recipe(tmp_path)
    trainable = GraftTrainable(folder, recipe)
    optimiser = make_optimiser(trainable.parameters, recipe)
    for _ in range(4):
        _backward(trainable, recipe)
        optimiser.step()
    assert all(p.grad is None for p in trainable.model.base.parameters())
    assert all(p.grad is not None for p in trainable.parameters.values())


def test_the_base_runs_without_a_graph(folder: Path, tmp_path: Path) -> None:
    trainable = GraftTrainable(folder, small_recipe(tmp_path))
    outputs: list[torch.Tensor] = []
    for module in trainable.model.base.modules():
        module.register_forward_hook(
            lambda module, inputs, output: outputs.extend(
                t for t in (output if isinstance(output, tuple) else (output,))
                if isinstance(t, torch.Tensor)
            )
        )  # fmt: skip
    scores = trainable.reader("reward")(BATCH, last_tokens(BATCH))
    assert scores.grad_fn is not None
    assert len(outputs) > 20
    assert all(output.grad_fn is None and not output.requires_grad for output in outputs)


def test_read_gives_what_the_model_gives(folder: Path, tmp_path: Path) -> None:
    trainable = GraftTrainable(folder, small_recipe(tmp_path))
    with torch.no_grad():
        for parameter in trainable.parameters.values():
            parameter.normal_(0, 0.1, generator=torch.Generator().manual_seed(0))
        whole = trainable.model(BATCH.input_ids, attention_mask=BATCH.attention_mask)
        for at in (last_tokens(BATCH), real_tokens(BATCH)):
            chosen = trainable.reader("reward")(BATCH, at)
            assert torch.allclose(chosen, whole.signals["reward"][at], atol=1e-6)


def test_the_base_is_read_as_it_is(folder: Path, tiny_llama: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    read = GraftTrainable(folder, small_recipe(tmp_path)).reader("reward")
    at = real_tokens(BATCH)
    read(BATCH, at)
    said = read.base_logits(BATCH, at)  # type: ignore[attr-defined]
    base = AutoModelForCausalLM.from_pretrained(tiny_llama)
    with torch.no_grad():
        logits = base(BATCH.input_ids, attention_mask=BATCH.attention_mask).logits
    assert torch.allclose(said, logits[at], atol=1e-5) and not said.requires_grad


def test_padding_does_not_change_a_score(folder: Path, tmp_path: Path) -> None:
    trainable = GraftTrainable(folder, small_recipe(tmp_path))
    with torch.no_grad():
        for parameter in trainable.parameters.values():
            parameter.normal_(0, 0.1, generator=torch.Generator().manual_seed(0))
        together = trainable.reader("reward")(BATCH, last_tokens(BATCH))
        for row, last in enumerate(BATCH.last.tolist()):
            alone = pad_batch([BATCH.input_ids[row, : last + 1].tolist()], 0)
            score = trainable.reader("reward")(alone, last_tokens(alone))
            assert score.item() == pytest.approx(together[row].item(), abs=1e-5)


def test_written_and_loaded_again(folder: Path, tmp_path: Path) -> None:
    trainable = GraftTrainable(folder, small_recipe(tmp_path))
    with torch.no_grad():
        for parameter in trainable.parameters.values():
            parameter.add_(0.5)
    trainable.write({})
    loaded = OtterForCausalLM.from_pretrained(folder)
    for name, tensor in trainable.model.inserted_state_dict().items():
        assert torch.equal(tensor, loaded.inserted_state_dict()[name])


@pytest.mark.parametrize(
    ("signals", "what", "hint"),
    [
        ({"rewrad": REWARD}, "signal 'rewrad', which", "did you mean 'reward'"),
        ({"reward": TOXICITY}, "'reward' is of kind value", "choose another objective"),
        ({"reward": FUTURE}, "'reward' is of kind value", "choose another objective"),
    ],
)
def test_a_recipe_for_other_signals_is_refused(
    folder: Path, tmp_path: Path, signals: dict[str, Any], what: str, hint: str
) -> None:
    with pytest.raises(OtterError, match=what) as caught:
        GraftTrainable(folder, small_recipe(tmp_path, signals))
    assert hint in caught.value.hint


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"kv": "base"},
        {"norm": "base"},
        {"init": "zero-output"},
        {"init": "normal"},
        {"embedding": "zeros"},
        {"embedding": "zeros", "kv": "base", "layers": (1, 2)},
        {"heads": 0},
        {"ffn": 0},
        {"hidden": 0},
    ],
    ids=str,
)
def test_a_gradient_reaches_every_tensor_but_those_named(
    tiny_llama: Path, tmp_path: Path, options: dict[str, Any]
) -> None:
    folder = small_graft(tiny_llama, tmp_path / "graft", **options)
    recipe = small_recipe(tmp_path)
    trainable = GraftTrainable(folder, recipe)
    optimiser = make_optimiser(trainable.parameters, recipe)
    # Without exceptions, so that the ones named are seen to be needed.
    guard = TrainingGuard(trainable.parameters)
    for step in range(GRADIENT_STEPS - 1):
        optimiser.zero_grad()
        _backward(trainable, recipe)
        guard.check(step, 0.7)
        optimiser.step()
    assert guard.pending == trainable.gradient_free
