"""Training moves inserted tensors and nothing else: not a bit of the base, in memory or on disk."""

import hashlib
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from otter_cli.checkpoint.folder import MANIFEST
from otter_cli.data.batches import last_tokens
from otter_cli.graft.manifest import Manifest
from otter_cli.graft.storage import TENSORS_FILE
from otter_cli.graft.surgery import strip
from otter_cli.model.otter import OtterForCausalLM
from otter_cli.training.loop import TrainingRun
from otter_cli.training.recipe import load_recipe
from otter_cli.training.run import train
from otter_cli.training.state import StateFolder
from otter_cli.training.trainable import GraftTrainable
from tests.support.training import (
    FUTURE,
    REWARD,
    TOXICITY,
    small_graft,
    small_recipe,
    write_data,
    write_recipe,
)


@pytest.fixture
def folder(tiny_llama: Path, tmp_path: Path) -> Path:
    return small_graft(tiny_llama, tmp_path / "graft", "reward", "toxicity", "future:2")


def _digests(folder: Path) -> dict[str, str]:
    return {
        p.relative_to(folder).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(folder.rglob("*"))
        if p.is_file()
    }


def test_only_inserted_tensors_change_on_disk(
    folder: Path, tiny_llama: Path, tmp_path: Path
) -> None:
    before, values = _digests(folder), load_file(folder / TENSORS_FILE)
    recipe = small_recipe(tmp_path, {"reward": REWARD, "future": FUTURE}, steps=25)
    train(folder, recipe)
    after = _digests(folder)
    assert {name for name in before if after[name] != before[name]} == {TENSORS_FILE, MANIFEST}
    assert all(name.startswith("training/") for name in after.keys() - before.keys())
    trained = load_file(folder / TENSORS_FILE)
    still = {name for name in values if torch.equal(trained[name], values[name])}
    # The head that the recipe leaves out, and the bias that cancels in a pair.
    assert still == {
        *(f"otter.main.signals.toxicity.{part}" for part in ("base", "inserted", "bias")),
        "otter.main.signals.reward.bias",
    }
    strip(folder, tmp_path / "back")
    assert _digests(tmp_path / "back") == _digests(tiny_llama)


def test_the_base_in_memory_is_bit_unchanged_and_has_no_gradient(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs: list[TrainingRun] = []
    take_step = TrainingRun.take_step
    monkeypatch.setattr(TrainingRun, "take_step", lambda run: (runs.append(run), take_step(run))[1])
    signals = {"reward": REWARD, "toxicity": TOXICITY, "future": FUTURE}
    train(folder, small_recipe(tmp_path, signals))
    trainable = runs[0].trainable
    assert isinstance(trainable, GraftTrainable)
    fresh = dict(OtterForCausalLM.from_pretrained(folder).base.named_parameters())
    for name, parameter in trainable.model.base.named_parameters():
        assert torch.equal(parameter, fresh[name])
        assert parameter.grad is None and not parameter.requires_grad


def test_the_trained_folder_scores_as_the_trainee_did(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs: list[TrainingRun] = []
    evaluate = TrainingRun.evaluate
    monkeypatch.setattr(
        TrainingRun,
        "evaluate",
        lambda run, log, **how: (runs.append(run), evaluate(run, log, **how)),
    )
    recipe = small_recipe(tmp_path)
    train(folder, recipe)
    loaded = GraftTrainable(folder, recipe)
    batch = runs[0].data["reward"].batch(0)
    with torch.no_grad():
        at = last_tokens(batch)
        assert torch.equal(
            loaded.reader("reward")(batch, at), runs[0].trainable.reader("reward")(batch, at)
        )


def test_the_state_holds_what_the_folder_holds(folder: Path, tmp_path: Path) -> None:
    train(folder, small_recipe(tmp_path))
    state = StateFolder(folder).load()
    assert state is not None
    written = load_file(folder / TENSORS_FILE)
    values = {n: t for n, t in state.tensors.items() if n.startswith("value/")}
    assert values
    for name, tensor in values.items():
        assert torch.equal(tensor, written[name.removeprefix("value/")])


def test_a_bf16_base_stays_in_bf16_and_the_insertion_trains_in_fp32(
    tiny_checkpoint, tmp_path: Path
) -> None:
    folder = small_graft(tiny_checkpoint("llama", dtype="bfloat16"), tmp_path / "bf16")
    before = load_file(folder / "model.safetensors")
    write_data(tmp_path)
    recipe = load_recipe(write_recipe(tmp_path))
    trainable = GraftTrainable(folder, recipe)
    assert trainable.model.base.dtype == torch.bfloat16
    assert {p.dtype for p in trainable.parameters.values()} == {torch.float32}
    train(folder, recipe)
    after = load_file(folder / "model.safetensors")
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert Manifest.read(folder).training["reward"].steps == recipe.steps
