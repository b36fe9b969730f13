"""First values of inserted tensors, with numpy alone: copy, normal, random, zero-output (METHOD,
1)."""

from __future__ import annotations

import numpy as np

from otter_cli.checkpoint.folder import Checkpoint
from otter_cli.core.seeds import derive_seed
from otter_cli.insertion.plan import Plan
from otter_cli.insertion.slots import Slot

STANDARD_DEVIATION = 0.02


def initial_value(slot: Slot, plan: Plan, base: Checkpoint) -> np.ndarray:
    """First value of one tensor, float32. Depends on the seed and the tensor's name only, never on
    the order."""
    scheme = plan.config.init
    if slot.role == "signal" and slot.fill == "zeros":
        # A new signal reads zero until trained, whatever the scheme.
        return np.zeros(slot.shape, np.float32)
    if slot.role == "norm" and scheme != "copy":
        return np.ones(slot.shape, np.float32)
    if slot.role == "bias" and scheme != "copy":
        return np.zeros(slot.shape, np.float32)
    random = np.random.default_rng(derive_seed("initialise", plan.config.seed, slot.name))
    if slot.role == "signal":
        return _normal(slot, random)
    if scheme == "copy":
        return _copy(slot, plan, base, random)
    if scheme == "zero-output" and slot.role == "output":
        return np.zeros(slot.shape, np.float32)
    if scheme == "random":
        bound = 1.0 / np.sqrt(slot.shape[-1])
        return random.uniform(-bound, bound, slot.shape).astype(np.float32)
    return _normal(slot, random)


def _copy(slot: Slot, plan: Plan, base: Checkpoint, random: np.random.Generator) -> np.ndarray:
    name = slot.source.find(base) if slot.source else None
    if slot.source and name:
        return slot.source.read(name, base)
    if slot.fill == "normal":
        return _normal(slot, random)
    if slot.fill == "units":
        picked = np.zeros(slot.shape, np.float32)
        picked[np.arange(len(plan.units)), np.array(plan.units, np.int64)] = (
            plan.shape.residual_scale
        )
        return picked
    return np.full(slot.shape, slot.fill == "ones", np.float32)


def _normal(slot: Slot, random: np.random.Generator) -> np.ndarray:
    return random.normal(0.0, STANDARD_DEVIATION, slot.shape).astype(np.float32)
