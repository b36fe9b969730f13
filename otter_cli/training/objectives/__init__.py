"""The registry of objectives: one file each, chosen by `objective:` in a recipe's section."""

from typing import Annotated

from pydantic import Field

from otter_cli.training.objectives.action_values import ActionConsistency, ActionValues
from otter_cli.training.objectives.autoregressive import Autoregressive
from otter_cli.training.objectives.bradley_terry import BradleyTerry
from otter_cli.training.objectives.classification import Classification
from otter_cli.training.objectives.distillation import Distillation
from otter_cli.training.objectives.future_tokens import FutureTokens
from otter_cli.training.objectives.language_model import LanguageModel
from otter_cli.training.objectives.objective import Objective, Positions, Read, Source
from otter_cli.training.objectives.pointwise import Pointwise
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
    "Distillation",
    "FutureTokens",
    "LanguageModel",
    "Objective",
    "Pointwise",
    "Positions",
    "Read",
    "Rollouts",
    "Source",
]
