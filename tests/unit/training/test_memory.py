"""Activation memory that is told before a run: counted, not guessed."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from otter_cli.model.load import load_tokenizer
from otter_cli.training.loop import PeakMemory, TrainingRun, activation_bytes
from otter_cli.training.signal_data import load_signal_data
from otter_cli.training.state import StateFolder
from otter_cli.training.trainable import GraftTrainable
from tests.support.training import small_recipe


def _run(folder: Path, data: Path, **settings: Any) -> TrainingRun:
    recipe = small_recipe(data, **settings)
    trainable = GraftTrainable(folder, recipe)
    material = load_signal_data(
        "reward", recipe, trainable.signals["reward"], load_tokenizer(folder)
    )
    return TrainingRun(trainable, recipe, {"reward": material}, StateFolder(folder), {})


def test_the_count_is_what_a_graph_of_known_tensors_keeps(folder: Path, tmp_path: Path) -> None:
    run = _run(folder, tmp_path)
    weight = nn.Parameter(torch.ones(16, 4))
    run.trainable.model.known = weight
    texts = 2 * run.recipe.batch_size

    def loss(read: Any, batch: Any) -> torch.Tensor:
        assert len(batch.last) == texts
        # The product keeps its input, the square what it squares; the weight is no activation.
        return (torch.ones(texts, 16) @ weight).square().sum()

    object.__setattr__(run.recipe.signals["reward"], "loss", loss)
    assert activation_bytes(run) == 4 * texts * (16 + 4)


def test_passes_of_half_a_batch_keep_half(folder: Path, tmp_path: Path) -> None:
    whole, halves = (activation_bytes(_run(folder, tmp_path, accumulate=n)) for n in (1, 2))
    assert 0.4 < halves / whole < 0.62


def test_counting_moves_nothing(folder: Path, tmp_path: Path) -> None:
    run = _run(folder, tmp_path)
    before = {name: p.detach().clone() for name, p in run.trainable.parameters.items()}
    activation_bytes(run)
    assert all(torch.equal(before[name], p) for name, p in run.trainable.parameters.items())
    assert all(p.grad is None for p in run.trainable.parameters.values())


def test_the_peak_sees_what_was_held_in_between() -> None:
    peak = PeakMemory("cpu")
    held = torch.ones(80_000_000)
    del held
    assert peak.bytes() > 250_000_000
