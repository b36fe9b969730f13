"""Grafts: the configuration, plan and first values of an insertion, and adding it to a base."""

from otter_cli.checkpoint.folder import MANIFEST
from otter_cli.graft.base_check import check_base
from otter_cli.graft.config import InsertionConfig, parse_layers, resolve_config
from otter_cli.graft.grafted_folder import update_tensors
from otter_cli.graft.manifest import Manifest, TrainedPositions, TrainingRecord
from otter_cli.graft.plan import InsertedTensor, Plan
from otter_cli.graft.storage import TENSORS_FILE
from otter_cli.graft.surgery import graft, strip

__all__ = [
    "MANIFEST",
    "TENSORS_FILE",
    "InsertedTensor",
    "InsertionConfig",
    "Manifest",
    "Plan",
    "TrainedPositions",
    "TrainingRecord",
    "check_base",
    "graft",
    "parse_layers",
    "resolve_config",
    "strip",
    "update_tensors",
]
