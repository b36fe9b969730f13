"""The insertion: its configuration, plan, first values, and its way onto and off a base."""

from otter_cli.checkpoint.listing import MANIFEST
from otter_cli.insertion.check import check_base
from otter_cli.insertion.config import InsertionConfig, parse_layers, resolve
from otter_cli.insertion.graft import graft
from otter_cli.insertion.manifest import Manifest, Trained, TrainingRecord
from otter_cli.insertion.plan import Plan
from otter_cli.insertion.slots import Slot
from otter_cli.insertion.storage import TENSORS
from otter_cli.insertion.strip import strip
from otter_cli.insertion.update import update_tensors

__all__ = [
    "MANIFEST",
    "TENSORS",
    "InsertionConfig",
    "Manifest",
    "Plan",
    "Slot",
    "Trained",
    "TrainingRecord",
    "check_base",
    "graft",
    "parse_layers",
    "resolve",
    "strip",
    "update_tensors",
]
