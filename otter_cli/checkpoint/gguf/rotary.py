"""Llama 3.1's rotary scaling, which a GGUF file holds as a tensor of factors.

llama.cpp divides each rotary frequency by its factor. Its converter computes the factors from the
settings of `rope_type: llama3`, and the file keeps the factors alone. transformers' loader ignores
them, so that the model would be another one. Here the settings are found again: they are taken only
if they give every factor of the file."""

from __future__ import annotations

from typing import Any

import numpy as np

from otter_cli.checkpoint.gguf.header import GgufHeader, GgufTensor
from otter_cli.core.errors import OtterError

ROTARY_FACTORS = "rope_freqs.weight"

# What Llama 3.1, 3.2 and 3.3 have in common. They differ in the factor, which is the largest.
_LOW, _HIGH, _TRAINED_POSITIONS = 1.0, 4.0, 8192
# The converter computes in float32.
_TOLERANCE = 1e-4


def rotary_scaling(header: GgufHeader, raw: dict[str, Any]) -> dict[str, Any]:
    """The entries of the configuration that the file's factors stand for; none where all are 1.
    `raw` is the configuration as transformers' loader reads it. Raises OtterError for factors that
    no such entries give."""
    stored = header.tensors.get(ROTARY_FACTORS)
    if stored is None or header.architecture != "llama":
        return {}
    factors = _read_factors(header, stored)
    if (factors == 1).all():
        return {}
    factor, theta = float(factors.max()), float(raw.get("rope_theta", 10_000.0))
    expected = llama3_factors(len(factors), theta, factor)
    # A factor that is not finite is never close.
    if not np.allclose(factors, expected, rtol=_TOLERANCE, atol=0):
        raise OtterError(
            f"{header.path}: the rotary factors in {ROTARY_FACTORS!r} are not those of "
            "`rope_type: llama3`, so no configuration of transformers gives the same model",
            hint="use the model's safetensors checkpoint",
        )
    scaling = {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": _LOW,
        "high_freq_factor": _HIGH,
        "original_max_position_embeddings": _TRAINED_POSITIONS,
    }
    return {"rope_scaling": scaling}


def llama3_factors(count: int, theta: float, factor: float) -> np.ndarray:
    """The factor of each rotary frequency: 1 for short waves, `factor` for long ones, and in
    between a blend of the two frequencies."""
    waves = 2 * np.pi * theta ** (np.arange(count) / count)
    blend = (_TRAINED_POSITIONS / waves - _LOW) / (_HIGH - _LOW)
    return 1 / ((1 - blend.clip(0, 1)) / factor + blend.clip(0, 1))


def _read_factors(header: GgufHeader, stored: GgufTensor) -> np.ndarray:
    if stored.type_name != "F32" or len(stored.shape) != 1:
        raise OtterError(
            f"{header.path}: {ROTARY_FACTORS!r} is no list of numbers in F32",
            hint="use the model's safetensors checkpoint",
        )
    return np.fromfile(header.path, "<f4", stored.shape[0], offset=stored.start).astype(float)
