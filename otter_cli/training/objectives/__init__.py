"""The registry of objectives: one file each, chosen by `objective:` in a recipe's section."""

from typing import Annotated

from pydantic import Field

from otter_cli.training.objectives.bradley_terry import BradleyTerry
from otter_cli.training.objectives.classification import Classification
from otter_cli.training.objectives.future_tokens import FutureTokens
from otter_cli.training.objectives.objective import Objective, Positions, Read, Source

AnyObjective = Annotated[
    BradleyTerry | Classification | FutureTokens, Field(discriminator="objective")
]

__all__ = [
    "AnyObjective",
    "BradleyTerry",
    "Classification",
    "FutureTokens",
    "Objective",
    "Positions",
    "Read",
    "Source",
]
