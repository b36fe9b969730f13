"""The grafted model: taps on the base, inserted streams, signal heads."""

from otter_cli.model.deferred import Deferred, may_defer
from otter_cli.model.load import load_base
from otter_cli.model.otter import OtterForCausalLM, OtterOutput
from otter_cli.model.record import inside_insertion

__all__ = [
    "Deferred",
    "OtterForCausalLM",
    "OtterOutput",
    "inside_insertion",
    "load_base",
    "may_defer",
]
