"""The first value of each inserted tensor, in float32 (docs/method.md, "Initial values").

A value depends on the seed and on the tensor's name only, so the order of writing does not matter.
"""

from __future__ import annotations

import numpy as np

from otter_cli.checkpoint.dtypes import FLOAT_DTYPES
from otter_cli.checkpoint.folder import Checkpoint
from otter_cli.core.errors import OtterError
from otter_cli.core.process import derive_seed
from otter_cli.graft.plan import CopySource, Indices, InsertedTensor, Plan

STANDARD_DEVIATION = 0.02


def initial_value(tensor: InsertedTensor, plan: Plan, base: Checkpoint) -> np.ndarray:
    """The first value of one tensor of the plan.

    Raises OtterError for `init: copy` from a tensor that is quantised in the base's file.
    """
    scheme = plan.config.init
    random = np.random.default_rng(derive_seed("initialise", plan.config.seed, tensor.name))
    if tensor.role == "signal":
        # A signal reads zero until it is trained, under every scheme.
        if tensor.fill == "zeros":
            return np.zeros(tensor.shape, np.float32)
        return _normal(tensor, random)
    if scheme == "copy":
        return _copied(tensor, plan, base, random)
    if tensor.role == "norm":
        return np.ones(tensor.shape, np.float32)
    if tensor.role == "bias" or (scheme == "zero-output" and tensor.role == "output"):
        return np.zeros(tensor.shape, np.float32)
    if scheme == "random":
        bound = 1.0 / np.sqrt(tensor.shape[-1])
        return random.uniform(-bound, bound, tensor.shape).astype(np.float32)
    return _normal(tensor, random)


def _normal(tensor: InsertedTensor, random: np.random.Generator) -> np.ndarray:
    return random.normal(0.0, STANDARD_DEVIATION, tensor.shape).astype(np.float32)


def _copied(
    tensor: InsertedTensor, plan: Plan, base: Checkpoint, random: np.random.Generator
) -> np.ndarray:
    source = tensor.source
    if source and (name := next((name for name in source.names if name in base.tensors), None)):
        return _read_source(source, name, base)
    if tensor.fill == "normal":
        return _normal(tensor, random)
    if tensor.fill == "units":
        values = np.zeros(tensor.shape, np.float32)
        values[np.arange(len(plan.units)), _indices(plan.units)] = plan.shape.residual_scale
        return values
    return np.full(tensor.shape, tensor.fill == "ones", np.float32)


def _read_source(source: CopySource, name: str, base: Checkpoint) -> np.ndarray:
    """The part of the base's tensor `name` that `source` describes, as [out, in]."""
    if base.tensors[name].dtype not in FLOAT_DTYPES:
        raise OtterError(
            f"{base.path}: {name} is stored as {base.tensors[name].dtype} and cannot be copied",
            hint="graft with --init normal, or onto an unquantised checkpoint",
        )
    rows = None if source.rows is None else _indices(source.rows)
    columns = None if source.columns is None else _indices(source.columns)
    if source.transposed:
        values = base.read(name, rows=columns, columns=rows).T
    else:
        values = base.read(name, rows=rows, columns=columns)
    if source.scale != 1.0 or source.offset:
        values = values * np.float32(source.scale) + np.float32(source.offset)
    return np.ascontiguousarray(values, np.float32)


def _indices(indices: Indices) -> np.ndarray:
    return np.array(indices, np.int64)
