"""Strict loading: what the engine found of an insertion against its plan."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from otter_cli.core.errors import OtterError
from otter_cli.insertion import Plan


def check_stored(stored: Mapping[str, Tensor], plans: Sequence[Plan]) -> None:
    """Raises OtterError for a tensor that is missing, unexpected or of another shape."""
    expected = {slot.name: slot.shape for plan in plans for slot in plan.slots}
    for name in sorted(expected.keys() | stored.keys()):
        if name not in stored:
            what = "is missing"
        elif name not in expected:
            what = "is unexpected"
        elif tuple(stored[name].shape) != expected[name]:
            what = f"is {list(stored[name].shape)}, expected {list(expected[name])}"
        else:
            continue
        raise OtterError(
            f"inserted tensor {name} {what}",
            hint="export the graft again: otter export OUT DIR --to vllm",
        )
