"""First values of inserted tensors, with numpy alone: copy, normal, random, zero-output (METHOD,
1)."""

from __future__ import annotations

import numpy as np

from otter_cli.checkpoint.folder import Checkpoint
from otter_cli.core.seeds import derive_seed
from otter_cli.insertion.plan import Plan, Slot

STANDARD_DEVIATION = 0.02


def initial_value(slot: Slot, plan: Plan, base: Checkpoint) -> np.ndarray:
    """First value of one tensor, float32. Depends on the seed and the tensor's name only, never on
    the order."""
    scheme = plan.config.init
    if slot.role == "signal":
        # A new signal reads zero until trained; its gradient does not vanish, since it is linear.
        return np.zeros(slot.shape, np.float32)
    if slot.role == "norm" and scheme != "copy":
        return np.ones(slot.shape, np.float32)
    if slot.role == "bias" and scheme != "copy":
        return np.zeros(slot.shape, np.float32)
    if scheme == "copy":
        return _copy(slot, base)
    random = np.random.default_rng(derive_seed("initialise", plan.config.seed, slot.name))
    if scheme == "zero-output" and slot.role == "output":
        return np.zeros(slot.shape, np.float32)
    if scheme == "random":
        bound = 1.0 / np.sqrt(slot.shape[-1])
        return random.uniform(-bound, bound, slot.shape).astype(np.float32)
    return random.normal(0.0, STANDARD_DEVIATION, slot.shape).astype(np.float32)


def _copy(slot: Slot, base: Checkpoint) -> np.ndarray:
    if slot.source is None:
        return np.zeros(slot.shape, np.float32)
    return base.read(slot.source, rows=slot.rows, columns=slot.columns)
