"""Future heads as a drafter in vLLM's Medusa format, over the state that the engine carries.

A Medusa head is `x + silu(x W + b)`, then an unembedding; ours is `y + silu([y ; v] W + b)`, then
the base's (arXiv 2401.10774, section 2.1). The grafted model's state is x = [y ; v]. With zeros in
the rows that would change v, and in the unembedding's columns that would read v, both give the same
numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from otter_cli.checkpoint.dtypes import Array
from otter_cli.checkpoint.folder import Checkpoint
from otter_cli.checkpoint.safetensors_reader import ShardedTensors
from otter_cli.checkpoint.safetensors_writer import TensorSpec, write_tensors
from otter_cli.core.atomic import write_json
from otter_cli.core.errors import OtterError
from otter_cli.graft.plan import Plan
from otter_cli.signals.config import SignalConfig, unknown_signal
from otter_cli.signals.heads import HEADS

DRAFTER_FOLDER = "drafter"
DRAFTER_FILES = ("config.json", "model.safetensors")
_HEAD_PARTS = {"base", "inserted", "bias"}


@dataclass(frozen=True)
class MedusaDrafter:
    """The heads of `signal`. The engine's state has `width` units; those of the signal's insertion
    begin at `start`."""

    base: Checkpoint
    inserted: ShardedTensors
    plan: Plan
    signal: SignalConfig
    start: int
    width: int

    @classmethod
    def of(
        cls, base: Checkpoint, inserted: ShardedTensors, plans: Sequence[Plan], name: str
    ) -> MedusaDrafter:
        """Raises OtterError for a signal that the format cannot hold."""
        start = plans[0].shape.hidden
        width = start + sum(plan.config.hidden for plan in plans)
        for plan in plans:
            for signal in plan.config.signals:
                if signal.name == name:
                    _check_medusa(signal, plan)
                    return cls(base, inserted, plan, signal, start, width)
            start += plan.config.hidden
        raise unknown_signal(name, [s.name for plan in plans for s in plan.config.signals])

    def write(self, folder: Path) -> None:
        make: dict[str, Callable[[], Array]] = {
            f"blocks.{head}.layers.0.weight": partial(self.weight, head) for head in self.heads
        }
        make |= {f"blocks.{head}.layers.0.bias": partial(self.bias, head) for head in self.heads}
        dtype, width = self.plan.config.dtype, self.width
        specs = {
            name: TensorSpec(dtype, (width, width) if name.endswith("weight") else (width,))
            for name in make
        }
        specs["lm_heads.0.weight"] = TensorSpec(self.base.dtype, (self.plan.shape.vocab, width))
        make["lm_heads.0.weight"] = self.unembedding
        folder.mkdir()
        write_tensors(folder / DRAFTER_FILES[1], specs, lambda name: make[name](), {"format": "pt"})
        write_json(folder / DRAFTER_FILES[0], self.config())

    @property
    def heads(self) -> range:
        return range(self.signal.size)

    def config(self) -> dict[str, Any]:
        return {
            "architectures": ["MedusaModel"],
            "model_type": "medusa",
            "hidden_size": self.width,
            "num_heads": self.signal.size,
            "num_hidden_layers": 1,
            "medusa_fc_bias": True,
            "original_lm_head": True,
            "vocab_size": self.plan.shape.vocab,
        }

    def weight(self, head: int) -> Array:
        """[[W_y, W_v], [0, 0]] as [out, in]: with zero rows v stays as it is, since silu(0) = 0."""
        rows, d = self._rows(head), self.plan.shape.hidden
        out = np.zeros((self.width, self.width), np.float32)
        out[:d, :d] = self._read("base")[rows]
        if D := self.plan.config.hidden:
            out[:d, self.start : self.start + D] = self._read("inserted")[rows]
        return out

    def bias(self, head: int) -> Array:
        return np.pad(
            self._read("bias")[self._rows(head)], (0, self.width - self.plan.shape.hidden)
        )

    def unembedding(self) -> Array:
        family = self.plan.shape.family
        untied = family.head_weight in self.base.tensors
        table = self.base.read(family.head_weight if untied else f"{family.embedding}.weight")
        return np.pad(table, ((0, 0), (0, self.width - self.plan.shape.hidden)))

    def _rows(self, head: int) -> slice:
        d = self.plan.shape.hidden
        return slice(head * d, (head + 1) * d)

    def _read(self, part: str) -> Array:
        name = f"otter.{self.plan.config.name}.signals.{self.signal.name}.{part}"
        return self.inserted.read(name).astype(np.float32)


def _check_medusa(signal: SignalConfig, plan: Plan) -> None:
    if signal.kind != "future":
        raise OtterError(
            f"signal {signal.name!r} scores, it predicts no tokens",
            hint="a future signal drafts: otter graft --signal future:3,plain",
        )
    shapes = HEADS["future"].shapes(signal, plan.shape.hidden, plan.config.hidden, plan.shape.vocab)
    if not shapes.keys() <= _HEAD_PARTS:
        raise OtterError(
            f"vLLM's Medusa format cannot hold signal {signal.name!r}: its heads read the tokens "
            "drafted before, and a Medusa head reads the state alone",
            hint="train plain heads for this engine (--signal future:3,plain), or draft with "
            "otter generate --draft",
        )
