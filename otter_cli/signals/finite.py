"""Signal values that are not finite: a reader gets no value and a warning, a decision is an error.

NaN or infinity in the inserted tensors leaves the base's text exact, but the signals are
meaningless. A comparison with NaN is false, and argmax takes NaN for the largest value. So code
that chooses, gates, rejects or measures by such a value must stop.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from otter_cli.core.console import warn
from otter_cli.core.errors import OtterError

if TYPE_CHECKING:
    from torch import Tensor


NON_FINITE_HINT = (
    "train the signal again; `otter doctor` names the tensors that hold NaN or infinity"
)


def class_probabilities(logits: Tensor) -> Tensor:
    """Probabilities of multi-label classes. Infinite logits give NaN: they are no certainty."""
    return (logits + 0 * logits).sigmoid()


def require_finite(values: Tensor, what: str) -> None:
    """Raises OtterError unless all values are finite. Call it before a decision by them."""
    # 0 times NaN or infinity is NaN. This takes two operations, and isfinite takes five.
    if not math.isfinite((values * 0).sum()):
        raise non_finite_error(what)


def non_finite_error(what: str) -> OtterError:
    return OtterError(f"{what} is not finite: nothing can be decided by it", hint=NON_FINITE_HINT)


def finite_or_none(values: Any) -> Any:
    """The same nested lists, with None for each value that is not finite: JSON has no NaN."""
    if isinstance(values, list):
        return [finite_or_none(value) for value in values]
    return values if values is None or math.isfinite(values) else None


def warn_non_finite(names: Iterable[str]) -> None:
    """A single warning that names the signals, if there are any."""
    if distinct := ", ".join(dict.fromkeys(names)):
        warn(
            f"NaN or infinity in signals {distinct}. The text is the base's all the same. "
            f"Hint: {NON_FINITE_HINT}"
        )


def non_finite_signals(signals: dict[str, Any]) -> list[str]:
    """The names of signals with a value that is not finite."""
    return [name for name, values in signals.items() if not _all_finite(values)]


def _all_finite(values: Any) -> bool:
    if isinstance(values, list):
        return all(map(_all_finite, values))
    return math.isfinite(values)
