"""Checkpoints that are quantised in the file: which packages transformers reads them with."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

# By `quant_method`: the modules that transformers' quantisers import, and what pip calls them.
PACKAGES: dict[str, dict[str, str]] = {
    "aqlm": {"aqlm": "aqlm[gpu,cpu]"},
    "auto-round": {"auto_round": "auto-round"},
    "awq": {"gptqmodel": "gptqmodel"},
    "bitnet": {},
    "bitsandbytes": {"bitsandbytes": "bitsandbytes"},
    "bitsandbytes_4bit": {"bitsandbytes": "bitsandbytes"},
    "bitsandbytes_8bit": {"bitsandbytes": "bitsandbytes"},
    "compressed-tensors": {"compressed_tensors": "compressed-tensors"},
    "eetq": {"kernels": "kernels"},
    "fbgemm_fp8": {"fbgemm_gpu": "fbgemm-gpu"},
    "fouroversix": {"fouroversix": "fouroversix"},
    "fp8": {},
    "fp_quant": {"fp_quant": "fp_quant"},
    "gemma": {},
    "gptq": {"optimum": "optimum", "gptqmodel": "gptqmodel"},
    "higgs": {"flute": "flute-kernel", "fast_hadamard_transform": "fast_hadamard_transform"},
    "hqq": {"hqq": "hqq"},
    "metal": {"kernels": "kernels"},
    "mxfp4": {},
    "mxfp8": {},
    "nvfp4": {},
    "quanto": {"optimum.quanto": "optimum-quanto"},
    "quark": {"quark": "amd-quark"},
    "sinq": {"sinq": "sinq"},
    "spqr": {"spqr_quant": "spqr_quant[gpu]"},
    "torchao": {"torchao": "torchao"},
    "vptq": {"vptq": "vptq"},
}


def quantisation_fault(config: dict[str, Any]) -> tuple[str, str] | None:
    """Why a base that is quantised in the file cannot be read here, and what to do; None: it can,
    or it is not quantised."""
    given = config.get("quantization_config")
    if given is None:
        return None
    method = given.get("quant_method") if isinstance(given, dict) else None
    if not isinstance(method, str) or method not in PACKAGES:
        name = "no quant_method" if method is None else ascii(method)[:60]
        return (
            f"config.json: quantization_config names {name}: transformers cannot read that",
            f"use the unquantised checkpoint; known: {', '.join(PACKAGES)}",
        )
    absent = [install for module, install in PACKAGES[method].items() if not _installed(module)]
    if not absent:
        return None
    names = f"{' and '.join(absent)} {'are' if len(absent) > 1 else 'is'}"
    what = f"config.json: the base is quantised by {method}, and {names} not installed"
    return what, f"pip install {' '.join(absent)}; or use the unquantised checkpoint"


def _installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # of the package that it would be in
        return False
