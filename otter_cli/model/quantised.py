"""A base whose weights are quantised as it loads: another base than the file's, for less memory."""

from __future__ import annotations

from typing import Any

from otter_cli.core.errors import OtterError


def quantisation_config(how: str | None) -> Any:
    """What transformers takes for `how`; None: the file's own weights. Raises OtterError where the
    library is not installed."""
    if how is None:
        return None
    try:
        from torchao.quantization import Int8WeightOnlyConfig
    except ImportError as error:
        raise OtterError(
            f"quantize: {how} needs the package torchao, which is not installed",
            hint="pip install 'otter-cli[quantised]', or leave quantize out",
        ) from error
    from transformers import TorchAoConfig

    return TorchAoConfig(Int8WeightOnlyConfig())
