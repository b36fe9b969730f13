"""Comparisons that a user writes: `toxicity>0.9`, `entropy > 1.5`, `tone.rude<=0.2`.

Options, requests to a server and the Python interface all read them by `parse_comparison`. This
module imports no torch.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable
from dataclasses import dataclass

from otter_cli.core.errors import OtterError

_SIGNS: dict[str, Callable[[float, float], bool]] = {
    ">": operator.gt,
    ">=": operator.ge,
    "<": operator.lt,
    "<=": operator.le,
}
_COMPARISON = re.compile(r"\s*([^<>=\s]+)\s*(>=|<=|>|<)\s*([^<>=\s]+)\s*")


@dataclass(frozen=True)
class Comparison:
    """`name`, `sign` and `number` of a comparison; `sign` is >, >=, < or <=."""

    name: str
    sign: str
    number: float

    @property
    def signal(self) -> str:
        """The name up to a dot or a slash: the signal, where the name is that of a signal."""
        return split_label(self.name)[0]

    @property
    def label(self) -> str | None:
        """What follows the dot or the slash, as in `tone.rude` and `tone/rude`."""
        return split_label(self.name)[1]

    def holds(self, value: float) -> bool:
        return _SIGNS[self.sign](value, self.number)

    def __str__(self) -> str:
        short = f"{self.number:g}"
        exact = short if float(short) == self.number else repr(self.number)
        return f"{self.name}{self.sign}{exact}"


def split_label(name: str) -> tuple[str, str | None]:
    """Signal and label of `tone.rude` or `tone/rude`; of `tone` the label is None."""
    signal, *label = re.split(r"[./]", name, maxsplit=1)
    return signal, label[0] if label else None


def parse_comparison(text: str) -> Comparison:
    """Reads NAME, a sign and a finite number. Raises OtterError."""
    if match := _COMPARISON.fullmatch(text):
        name, sign, digits = match.groups()
        try:
            number = float(digits)
        except ValueError:
            number = math.nan
        if math.isfinite(number):
            return Comparison(name, sign, number)
    raise OtterError(
        f"{text!r} is no bound: it compares no name with a finite number",
        hint="for example entropy>1.5, p<0.6, toxicity>=0.5",
    )
