"""The grafted model: how the base is read, the inserted stream, and OtterForCausalLM."""

from otter_cli.model.forward_context import inside_insertion
from otter_cli.model.lazy import LazyStream, supports_lazy_stream
from otter_cli.model.load import load_base
from otter_cli.model.otter import OtterForCausalLM, OtterOutput

__all__ = [
    "LazyStream",
    "OtterForCausalLM",
    "OtterOutput",
    "inside_insertion",
    "load_base",
    "supports_lazy_stream",
]
