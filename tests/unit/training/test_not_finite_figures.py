"""A held-out figure of values that are not finite is an error: compared, NaN is a wrong answer."""

from pathlib import Path
from typing import Any

import pytest
import torch

from otter_cli.core.errors import OtterError
from otter_cli.model.load import load_tokenizer
from otter_cli.training.evaluation import evaluate
from otter_cli.training.signal_data import load_signal_data
from otter_cli.training.trainable import GraftTrainable
from tests.support.training import FUTURE, REWARD, TOXICITY, small_graft, small_recipe

RECIPES: dict[str, Any] = {"reward": REWARD, "toxicity": TOXICITY, "future": FUTURE}


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf], ids=str)
@pytest.mark.parametrize("name", RECIPES)
def test_no_figure_comes_of_them(tiny_llama: Path, tmp_path: Path, name: str, value: float) -> None:
    folder = small_graft(tiny_llama, tmp_path / "g", "future:2" if name == "future" else name)
    recipe = small_recipe(tmp_path, {name: RECIPES[name]})
    trainable = GraftTrainable(folder, recipe)
    material = load_signal_data(name, recipe, trainable.signals[name], load_tokenizer(folder))
    assert material.test is not None
    arguments = (
        recipe.signals[name],
        trainable.signals[name],
        trainable.reader(name),
        material.test,
    )
    assert evaluate(*arguments, recipe.batch_size)
    with torch.no_grad():
        for parameter in trainable.parameters.values():
            parameter.view(-1)[0] = value
    with pytest.raises(OtterError, match="not finite: nothing can be decided"):
        evaluate(*arguments, recipe.batch_size)
