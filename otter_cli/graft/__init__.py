"""Grafting: an insertion is planned, priced, initialised and written beside a base.

In reading order: config.py (sizes) and plan.py (every tensor, from the family shape of a folder),
price.py, initial_values.py, storage.py (the streamed write), manifest.py (otter.json), and
surgery.py, which does it all. grafted_folder.py opens and updates a graft, base_check.py says
whether a base runs.
"""

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
