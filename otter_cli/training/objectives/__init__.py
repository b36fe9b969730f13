"""The objectives, chosen by `objective:` in a recipe's section of a signal.

To add one, write a module here with a subclass of `Objective`: all of them are found."""

from collections.abc import Iterator
from importlib import import_module
from inspect import isabstract
from pkgutil import iter_modules
from typing import TYPE_CHECKING, Annotated, Any, Union

from pydantic import Field

from otter_cli.training.objectives.objective import Objective


def _concrete_subclasses(kind: Any) -> Iterator[type[Objective]]:
    if not isabstract(kind):
        yield kind
    for subclass in kind.__subclasses__():
        yield from _concrete_subclasses(subclass)


for _module in iter_modules(__path__, f"{__name__}."):
    import_module(_module.name)
OBJECTIVES = tuple(sorted(_concrete_subclasses(Objective), key=lambda kind: kind.__name__))

if TYPE_CHECKING:
    AnyObjective = Objective
else:
    AnyObjective = Annotated[Union[OBJECTIVES], Field(discriminator="objective")]  # noqa: UP007

__all__ = ["OBJECTIVES", "AnyObjective", "Objective"]
