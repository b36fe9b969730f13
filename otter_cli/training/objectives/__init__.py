"""The registry of objectives, chosen by `objective:` in a recipe's section of a signal."""

from typing import Annotated

from pydantic import Field

from otter_cli.data.batches import Positions
from otter_cli.training.objectives.action_values import (
    ActionConsistency,
    ActionValues,
    Distillation,
)
from otter_cli.training.objectives.labelled import Classification, Pointwise
from otter_cli.training.objectives.objective import DataSource, Objective, ReadSignal
from otter_cli.training.objectives.pairs import Autoregressive, BradleyTerry
from otter_cli.training.objectives.plain_text import FutureTokens, LanguageModel
from otter_cli.training.objectives.rollouts import Rollouts

AnyObjective = Annotated[
    ActionConsistency
    | ActionValues
    | Autoregressive
    | BradleyTerry
    | Classification
    | Distillation
    | FutureTokens
    | LanguageModel
    | Pointwise
    | Rollouts,
    Field(discriminator="objective"),
]

__all__ = [
    "ActionConsistency",
    "ActionValues",
    "AnyObjective",
    "Autoregressive",
    "BradleyTerry",
    "Classification",
    "DataSource",
    "Distillation",
    "FutureTokens",
    "LanguageModel",
    "Objective",
    "Pointwise",
    "Positions",
    "ReadSignal",
    "Rollouts",
]
