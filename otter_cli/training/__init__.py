"""Training: a recipe's objectives, the loop, its states and guards, and the baselines."""

from otter_cli.training.recipe import Recipe, load_recipe
from otter_cli.training.run import TrainResult, train

__all__ = ["Recipe", "TrainResult", "load_recipe", "train"]
