"""A base whose weights are quantised as it loads: another base than the file's, for less memory."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from otter_cli.core.errors import OtterError

# int8: a scale a row; nf4: four bits a weight, normal quantiles over blocks (arXiv 2305.14314, 3).
_PACKAGES = {"int8": "torchao", "nf4": "bitsandbytes"}


def quantisation_config(how: str | None) -> Any:
    """What transformers takes for `how`, int8 or nf4; None: the file's own weights. Raises
    OtterError where the library is not installed."""
    if how is None:
        return None
    package = _PACKAGES[how]
    try:
        import_module(package)
    except ImportError as error:
        raise OtterError(
            f"quantize: {how} needs the package {package}, which is not installed",
            hint="pip install 'otter-cli[quantised]', or leave quantize out",
        ) from error
    from transformers import BitsAndBytesConfig, TorchAoConfig

    if how == "nf4":
        return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    from torchao.quantization import Int8WeightOnlyConfig

    return TorchAoConfig(Int8WeightOnlyConfig())
