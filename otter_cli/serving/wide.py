"""The paper's layout: one matrix [[W, W^h], [0, W^z]] for each projection (METHOD, 2).

Mathematically non-disruptive, but not bit for bit: a wider product rounds differently, and an
overflow in the inserted part reaches the base's (0 * inf = nan).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from otter_cli.checkpoint.folder import Checkpoint
from otter_cli.checkpoint.place import place_files
from otter_cli.checkpoint.tensor_file import TensorFile
from otter_cli.checkpoint.writer import TensorSpec, write_sharded
from otter_cli.core.atomic import staged_folder, write_bytes, write_json
from otter_cli.core.errors import OtterError
from otter_cli.families import base_shape
from otter_cli.insertion import Manifest, Plan

MODELLING = "modeling_otter_wide.py"
# Families whose blocks are what the modelling file widens: RMS norms before separate projections.
FAMILIES = ("llama", "mistral", "qwen2")

Array = np.ndarray
Quarter = Array | None


@dataclass(frozen=True)
class WidePlan:
    """Every tensor of the wide layout, made from the base's and the inserted ones."""

    base: Checkpoint
    inserted: TensorFile
    plan: Plan

    @cached_property
    def slots(self) -> list[tuple[int, list[int | None]]]:
        """For each key/value head that is added: which inserted one, and its query heads.

        The family's ratio of query to key/value heads must hold for all heads alike, so groups
        are filled up with zero heads, and key/value heads with too many queries are repeated.
        """
        config, group = self.plan.config, self.plan.shape.group
        share = config.heads // config.kv_heads if config.heads else 0
        found: list[tuple[int, list[int | None]]] = []
        for kv in range(config.kv_heads if config.heads else 0):
            queries = list(range(kv * share, (kv + 1) * share))
            for start in range(0, share, group):
                part: list[int | None] = list(queries[start : start + group])
                found.append((kv, part + [None] * (group - len(part))))
        return found

    @property
    def zero_heads(self) -> int:
        return sum(query is None for _, queries in self.slots for query in queries)

    def tensors(self) -> dict[str, tuple[tuple[int, ...], Callable[[], Array]]]:
        """Name to shape and maker."""
        family, shape, D = self.plan.shape.family, self.plan.shape, self.plan.config.hidden
        wide = shape.hidden + D
        found: dict[str, tuple[tuple[int, ...], Callable[[], Array]]] = {
            f"{family.embedding}.weight": ((shape.vocab, wide), self._embedding),
            f"{family.head}.weight": ((shape.vocab, wide), self._head),
            f"{family.final_norm}.weight": (
                (wide,),
                lambda: self._norm(f"{family.final_norm}.weight", "norm.weight"),
            ),
        }
        for layer in range(shape.layers):
            found |= self._attention(layer)
            found |= self._ffn(layer)
        for name, info in self.inserted.header.tensors.items():
            short = name.removeprefix(f"otter.{self.plan.config.name}.")
            if short.startswith("signals."):
                found[f"otter_{short}"] = (tuple(info.shape), partial(self.inserted.read, name))
        return found

    def _attention(self, layer: int) -> dict[str, Any]:
        shape, block = self.plan.shape, self.plan.shape.family.attention
        c, extra, here = shape.head_dim, len(self.slots), f"layers.{layer}.attention"
        at = lambda part: shape.family.layer(layer, part)  # noqa: E731
        wide, group = shape.hidden + self.plan.config.hidden, shape.group
        queries = [query for _, members in self.slots for query in members]
        keys = [kv for kv, _ in self.slots]
        found: dict[str, Any] = {
            f"{at(block.norm)}.weight": (
                (wide,),
                lambda: self._norm(f"{at(block.norm)}.weight", f"{here}.norm.weight"),
            ),
            f"{at(block.out)}.weight": (
                (wide, (shape.heads + extra * group) * c),
                lambda: self._output(at(block.out), f"{here}.out", self._columns(queries)),
            ),
        }
        for name, part, heads, total in (
            ("query", block.query, queries, shape.heads + extra * group),
            ("key", block.key, keys, shape.kv_heads + extra),
            ("value", block.value, keys, shape.kv_heads + extra),
        ):
            source, mine = at(part), f"{here}.{name}"
            found[f"{source}.weight"] = (
                (total * c, wide),
                lambda s=source, m=mine, h=heads: self._input(s, m, self._head_rows(m, h)),
            )
            if shape.attention_bias:
                found[f"{source}.bias"] = (
                    (total * c,),
                    lambda s=source, m=mine, h=heads: self._bias(s, m, self._head_rows(m, h)),
                )
        if shape.out_bias:
            name = f"{at(block.out)}.bias"
            found[name] = ((wide,), lambda: self._joined(name, f"{here}.out.bias"))
        return found

    def _ffn(self, layer: int) -> dict[str, Any]:
        shape, block = self.plan.shape, self.plan.shape.family.ffn
        at = lambda part: shape.family.layer(layer, part)  # noqa: E731
        here, f = f"layers.{layer}.ffn", self.plan.config.ffn
        wide, units = shape.hidden + self.plan.config.hidden, np.arange(f)
        norm = f"{at(block.norm)}.weight"
        found: dict[str, Any] = {
            norm: ((wide,), lambda: self._norm(norm, f"{here}.norm.weight")),
            f"{at(block.down)}.weight": (
                (wide, shape.ffn + f),
                lambda: self._output(at(block.down), f"{here}.down", units),
            ),
        }
        for name, part in (("gate", block.gate), ("up", block.up)):
            source, mine = at(part), f"{here}.{name}"
            found[f"{source}.weight"] = (
                (shape.ffn + f, wide),
                lambda s=source, m=mine: self._input(s, m, units),
            )
            if shape.ffn_bias:
                found[f"{source}.bias"] = (
                    (shape.ffn + f,),
                    lambda s=source, m=mine: self._bias(s, m, units),
                )
        if shape.ffn_bias:
            name = f"{at(block.down)}.bias"
            found[name] = ((wide,), lambda: self._joined(name, f"{here}.down.bias"))
        return found

    def _own(self, name: str) -> Array | None:
        full = f"otter.{self.plan.config.name}.{name}"
        return self.inserted.read(full) if full in self.inserted.header.tensors else None

    def _embedding(self) -> Array:
        shape, own = self.plan.shape, self._own("embedding.weight")
        zeros = np.zeros((shape.vocab, self.plan.config.hidden), np.float32)
        table = self.base.read(f"{shape.family.embedding}.weight")
        return np.concatenate([table, zeros if own is None else own], 1)

    def _head(self) -> Array:
        """[W_U ; 0]: a tied head comes apart from its embedding here."""
        shape, family = self.plan.shape, self.plan.shape.family
        name = f"{family.head}.weight"
        source = name if name in self.base.tensors else f"{family.embedding}.weight"
        zeros = np.zeros((shape.vocab, self.plan.config.hidden), np.float32)
        return np.concatenate([self.base.read(source), zeros], 1)

    def _norm(self, source: str, mine: str) -> Array:
        own = self._own(mine)
        ones = np.ones(self.plan.config.hidden, np.float32)
        return np.concatenate([self.base.read(source), ones if own is None else own])

    def _joined(self, source: str, mine: str) -> Array:
        own = self._own(mine)
        zeros = np.zeros(self.plan.config.hidden, np.float32)
        return np.concatenate([self.base.read(source), zeros if own is None else own])

    def _input(self, source: str, mine: str, rows: Array) -> Array:
        """[[W, 0], [W^h, W^z]] as [out, in]; a row of -1 is a zero head's."""
        weight, D = self.base.read(f"{source}.weight"), self.plan.config.hidden
        out = np.zeros((len(weight) + len(rows), weight.shape[1] + D), np.float32)
        out[: len(weight), : weight.shape[1]] = weight
        part, live = out[len(weight) :], rows >= 0
        of_base, of_stream = self._own(f"{mine}.h.weight"), self._own(f"{mine}.z.weight")
        if of_base is not None and of_stream is not None:
            part[live, : weight.shape[1]] = of_base[rows[live]]
            part[live, weight.shape[1] :] = of_stream[rows[live]]
        elif self._reads_base(mine):
            part[live, : weight.shape[1]] = weight[rows[live]]
        return out

    def _bias(self, source: str, mine: str, rows: Array) -> Array:
        bias, own, live = self.base.read(f"{source}.bias"), self._own(f"{mine}.bias"), rows >= 0
        extra = np.zeros(len(rows), np.float32)
        if own is not None:
            extra[live] = own[rows[live]]
        elif self._reads_base(mine):
            extra[live] = bias[rows[live]]
        return np.concatenate([bias, extra])

    def _output(self, source: str, mine: str, columns: Array) -> Array:
        """[[W, 0], [W^h, W^z]] as [out, in]: the inserted units feed z alone."""
        weight, D = self.base.read(f"{source}.weight"), self.plan.config.hidden
        rows, wide = weight.shape
        out = np.zeros((rows + D, wide + len(columns)), np.float32)
        out[:rows, :wide] = weight
        of_base, of_stream = self._own(f"{mine}.h.weight"), self._own(f"{mine}.z.weight")
        if of_base is not None:
            out[rows:, :wide] = of_base
        if of_stream is not None:
            live = np.flatnonzero(columns >= 0)
            out[rows:, wide + live] = of_stream[:, columns[live]]
        return out

    def _reads_base(self, mine: str) -> bool:
        """Whether these heads are repeated from the base's: its keys and values, where inserted."""
        name = mine.rpartition(".")[2]
        layer = int(mine.split(".")[1])
        config = self.plan.config
        return config.kv == "base" and name in ("key", "value") and layer in config.layers

    def _head_rows(self, mine: str, heads: list[int | None] | list[int]) -> Array:
        offset = self.plan.config.kv_start if self._reads_base(mine) else 0
        return self._columns([None if h is None else h + offset for h in heads])

    def _columns(self, heads: list[int | None]) -> Array:
        c = self.plan.shape.head_dim
        rows = [np.full(c, -1) if h is None else h * c + np.arange(c) for h in heads]
        return np.concatenate(rows) if rows else np.zeros(0, np.int64)


def export_wide(folder: Path, to: Path) -> WidePlan:
    """Writes the wide checkpoint, its configuration and the modelling file that loads it.

    Raises OtterError for a family or an insertion that the layout cannot hold.
    """
    manifest, base = Manifest.read(folder), Checkpoint.open(folder)
    manifest.check_tensors(folder)
    shape = base_shape(base.config)
    _check(manifest, shape.family.model_type)
    plan = Plan(manifest.insertions[0], shape)
    wide = WidePlan(base, TensorFile(folder / manifest.inserted.file), plan)
    tensors = wide.tensors()
    left_out = {*base.weight_files, "config.json"}
    kept = [f for f in base.files if f not in left_out and not f.endswith(".index.json")]
    with staged_folder(to) as staging:
        place_files(folder, kept, staging)
        write_sharded(
            staging,
            "model",
            {name: TensorSpec(base.dtype, form) for name, (form, _) in tensors.items()},
            lambda name: tensors[name][1](),
            {"format": "pt"},
        )
        write_json(staging / "config.json", _config(base, wide))
        write_bytes(staging / MODELLING, modelling_file(shape.family.model_type))
    return wide


def modelling_file(model_type: str) -> bytes:
    """The code that transformers runs to load the export; it imports nothing of otter."""
    text = resources.files("otter_cli.serving").joinpath(f"{MODELLING}.txt").read_text("utf-8")
    name = {"llama": "Llama", "mistral": "Mistral", "qwen2": "Qwen2"}[model_type]
    return text.replace("Llama", name).replace("llama", model_type).encode()


def _config(base: Checkpoint, wide: WidePlan) -> dict[str, Any]:
    config, shape = wide.plan.config, wide.plan.shape
    extra = len(wide.slots)
    return {
        **json.loads((base.path / "config.json").read_text()),
        "model_type": f"otter_wide_{shape.family.model_type}",
        "architectures": ["OtterWideForCausalLM"],
        "auto_map": {
            "AutoConfig": "modeling_otter_wide.OtterWideConfig",
            "AutoModelForCausalLM": "modeling_otter_wide.OtterWideForCausalLM",
        },
        "hidden_size": shape.hidden + config.hidden,
        "head_dim": shape.head_dim,
        "num_attention_heads": shape.heads + extra * shape.group,
        "num_key_value_heads": shape.kv_heads + extra,
        "intermediate_size": shape.ffn + config.ffn,
        "tie_word_embeddings": False,
        "otter_base_hidden": shape.hidden,
        "otter_norm": config.norm,
        "otter_signals": [signal.model_dump(mode="json") for signal in config.signals],
    }


def _check(manifest: Manifest, family: str) -> None:
    if family not in FAMILIES:
        raise OtterError(
            f"the wide layout is not described for {family}",
            hint=f"it is for {', '.join(FAMILIES)}; the additive layout serves every family",
        )
    if len(manifest.insertions) != 1 or not manifest.insertions[0].hidden:
        raise OtterError(
            "the wide layout holds exactly one insertion with hidden units",
            hint="export --to adapter keeps any number of insertions",
        )
