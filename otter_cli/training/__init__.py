"""Training, in the order in which a run uses the files.

`recipe` reads what to train; `signal_data` reads and encodes the rows; `run` puts a run together;
`trainable` is what is trained, the graft or one of `baselines/`; `loop` takes the steps, with the
losses of `objectives/`, `optimiser`, `evaluation` and `metrics_log`; `state` saves and resumes."""

from otter_cli.training.recipe import Recipe, load_recipe
from otter_cli.training.run import TrainResult, train

__all__ = ["Recipe", "TrainResult", "load_recipe", "train"]
