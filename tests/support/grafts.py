"""Grafts for tests, written to disk by the real pipeline; random ones have no zero anywhere."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np

from otter_cli.checkpoint.folder import Checkpoint
from otter_cli.families.shape import base_shape
from otter_cli.graft.config import resolve_config
from otter_cli.graft.grafted_folder import update_tensors
from otter_cli.graft.manifest import Manifest
from otter_cli.graft.plan import Plan
from otter_cli.graft.surgery import graft
from otter_cli.signals.config import parse_signal

CHAT_TEMPLATE = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
SIGNALS = ("reward", "toxicity", "future:2,plain")


def plan_for(base: Path, *, signals: tuple[str, ...] = SIGNALS, **options: Any) -> Plan:
    shape = base_shape(Checkpoint.open(base).config)
    parsed = tuple(parse_signal(text) for text in signals)
    return Plan(resolve_config(shape, signals=parsed, **options), shape)


def chat_base(base: Path, out: Path) -> Path:
    """A copy of `base` with a chat template."""
    shutil.copytree(base, out)
    (out / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    return out


def graft_for(base: Path, out: Path, **options: Any) -> Path:
    """A graft with the first values that its initialisation gives."""
    graft(Checkpoint.open(base), out, plan_for(base, **options))
    return out


def random_graft(
    base: Path, out: Path, *, scale: float = 0.1, seed: int = 0, **options: Any
) -> Path:
    """A graft all of whose inserted tensors are random: heads answer, gradients flow everywhere."""
    plan = plan_for(base, **options)
    graft(Checkpoint.open(base), out, plan)
    random = np.random.default_rng(seed)
    values = {
        slot.name: (random.normal(0, scale, slot.shape) + (slot.role == "norm")).astype(np.float32)
        for slot in plan.tensors
    }
    update_tensors(out, [plan], Manifest.read(out), values)
    return out
