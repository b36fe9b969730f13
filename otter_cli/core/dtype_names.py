"""The dtypes of --dtype, by the names that torch, safetensors and people use: one
parser for all."""

from __future__ import annotations

from otter_cli.core.errors import OtterError, did_you_mean

# torch's name, safetensors' name, and what else people type.
_DTYPES = {
    "float32": ("F32", "fp32", "float"),
    "bfloat16": ("BF16",),
    "float16": ("F16", "fp16", "half"),
}
_BY_NAME = {alias.lower(): name for name, aliases in _DTYPES.items() for alias in (name, *aliases)}

DTYPE_HELP = "float32, bfloat16 or float16 (also F32, fp32, BF16, bf16, F16, fp16)"


def parse_dtype(text: str, option: str = "--dtype") -> str:
    """torch's name of a dtype, whatever its case: "float32" for F32 and fp32. Raises OtterError."""
    name = _BY_NAME.get(text.removeprefix("torch.").lower())
    if name is None:
        raise OtterError(
            f"{option} {text!r} is no dtype", hint=did_you_mean(text, _BY_NAME) + DTYPE_HELP
        )
    return name


def stored_dtype_name(text: str) -> str:
    """safetensors' name of a dtype: "BF16" for bfloat16. Raises OtterError."""
    return _DTYPES[parse_dtype(text)][0]


def is_dtype(text: str) -> bool:
    return text.removeprefix("torch.").lower() in _BY_NAME
