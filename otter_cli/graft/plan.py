"""The plan of a graft: every tensor that a configuration inserts into a base of a given shape.

`plan_insertion` makes a plan for a base folder. `Plan.tensors` lists the inserted tensors in the
order of the stream, with shapes and with the place in the base from which `init: copy` takes their
first values. In a product `x W^h + u W^z`, W^h is stored as `.h.weight` and W^z as `.z.weight`,
both [out, in] (docs/method.md, "Symbols"). A plan imports no numpy, so a price needs none.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import prod
from typing import Any, Literal

from otter_cli.checkpoint.folder import MANIFEST, Checkpoint
from otter_cli.families.family import Attention, FeedForward
from otter_cli.families.shape import BaseShape, base_shape
from otter_cli.graft.config import InsertionConfig, parse_layers, resolve_config
from otter_cli.signals.config import parse_signal
from otter_cli.signals.heads import HEADS

Indices = Sequence[int]
TensorRole = Literal["matrix", "output", "norm", "bias", "embedding", "signal"]
# What `init: copy` writes where the base has nothing to copy. "units" selects the mirrored units.
FillRule = Literal["zeros", "ones", "normal", "units"]


@dataclass(frozen=True)
class CopySource:
    """`base[rows, columns] * scale + offset`, of the first of `names` that the base has.

    The family's multipliers are folded into `scale`, so the stream has none of its own.
    """

    names: tuple[str, ...]
    rows: Indices | None = None
    columns: Indices | None = None
    scale: float = 1.0
    offset: float = 0.0
    # The base stores [in, out]. Rows and columns still mean [out, in].
    transposed: bool = False


@dataclass(frozen=True)
class InsertedTensor:
    """One inserted tensor. The product of an `output` tensor is added to z.

    `source` is what `init: copy` copies from the base, `fill` what it writes without a source.
    """

    name: str
    shape: tuple[int, ...]
    role: TensorRole
    source: CopySource | None = None
    fill: FillRule = "zeros"

    @property
    def count(self) -> int:
        return prod(self.shape)


@dataclass(frozen=True)
class Plan:
    """The tensors that `config` inserts into a base of `shape`."""

    config: InsertionConfig
    shape: BaseShape

    def __post_init__(self) -> None:
        # `resolve_config` has checked the options of a command line. This checks what a file says.
        self.config.check(self.shape, f"{MANIFEST}: insertion {self.config.name!r}: ")

    @cached_property
    def tensors(self) -> tuple[InsertedTensor, ...]:
        """All inserted tensors, under their full names `otter.{insertion}.*`."""
        prefix = f"otter.{self.config.name}."
        return tuple(replace(tensor, name=prefix + tensor.name) for tensor in self._list_tensors())

    @cached_property
    def units(self) -> Indices:
        """Hidden units S of the base that the stream mirrors at first."""
        return evenly_spaced(self.config.hidden, self.shape.hidden)

    @cached_property
    def kv_units(self) -> Indices:
        """The base's key/value head behind each inserted key/value head."""
        if self.config.kv == "base":
            return range(self.config.kv_start, self.config.kv_start + self.config.kv_heads)
        return evenly_spaced(self.config.kv_heads, self.shape.kv_heads)

    @cached_property
    def head_units(self) -> Indices:
        """The base's query head behind each inserted query head. Both read the same key/value
        head."""
        if not self.config.heads:
            return []
        share, group = self.config.heads // self.config.kv_heads, self.shape.queries_per_kv_head
        return [unit * group + head % group for unit in self.kv_units for head in range(share)]

    @cached_property
    def ffn_units(self) -> Indices:
        """The base's FFN unit behind each inserted one."""
        return evenly_spaced(self.config.ffn, self.shape.ffn)

    @property
    def parameters(self) -> int:
        return sum(tensor.count for tensor in self.tensors)

    @property
    def stored_bytes(self) -> int:
        return self.parameters * (4 if self.config.dtype == "F32" else 2)

    def cache_bytes_per_token(self, itemsize: int = 4) -> int:
        """Growth of the KV cache in bytes per token of one sequence. It is 0 with `kv: base`."""
        heads = self.config.kv_heads if self.config.kv == "own" else 0
        return 2 * heads * self.shape.head_dim * len(self.config.layers) * itemsize

    def _list_tensors(self) -> Iterator[InsertedTensor]:
        config, shape, family = self.config, self.shape, self.shape.family
        if config.hidden and config.embedding == "table":
            source = self._source(family.embedding, columns=self.units, scale=shape.embedding_scale)
            yield InsertedTensor(
                "embedding.weight", (shape.vocab, config.hidden), "embedding", source
            )
            if family.positions:
                source = self._source(family.positions.module, columns=self.units)
                yield InsertedTensor(
                    "positions.weight", (shape.position_rows, config.hidden), "embedding", source
                )
        for layer in config.layers:
            yield from self._attention(f"layers.{layer}.attention", layer)
            yield from self._ffn(f"layers.{layer}.ffn", layer)
        if config.hidden:
            yield from self._norm("norm", family.final_norm)
        for signal in config.signals:
            head = HEADS[signal.kind]
            shapes = head.shapes(signal, shape.hidden, config.hidden, shape.vocab)
            for name, form in shapes.items():
                fill: FillRule = "normal" if name in head.random_tensors else "zeros"
                yield InsertedTensor(f"signals.{signal.name}.{name}", form, "signal", fill=fill)

    def _attention(self, prefix: str, layer: int) -> Iterator[InsertedTensor]:
        config, shape, block = self.config, self.shape, self.shape.family.attention
        c = shape.head_dim
        if config.heads:
            yield from self._norm(f"{prefix}.norm", self._module(layer, block.norm))
            head_norms = {"query": block.query_norm, "key": block.key_norm}
            norms = []
            for name, part, heads in self._projections():
                rows = projection_rows(shape, name, heads)
                scale = c**-0.5 if block.scaled_query and name == "query" else 1.0
                module = self._module(layer, part)
                yield from self._input(
                    f"{prefix}.{name}", module, rows, shape.attention_bias, scale
                )
                if norm := head_norms.get(name):
                    rows = head_rows(heads, c) if block.joint_norm else range(c)
                    source = self._norm_source(self._module(layer, norm), rows)
                    norms.append(
                        InsertedTensor(f"{prefix}.{name}_norm.weight", (len(rows),), "norm", source)
                    )
            yield from norms
            if block.sinks:
                names = shape.family.stored_names(self._module(layer, block.sinks))
                source = CopySource(names, self.head_units)
                yield InsertedTensor(f"{prefix}.sinks", (config.heads,), "bias", source)
        yield from self._output(
            f"{prefix}.out", layer, block, shape.heads * c, config.heads * c, shape.out_bias
        )
        yield from self._post_norm(prefix, layer, block)

    def _projections(self) -> list[tuple[str, str, Indices]]:
        """(name, module of the base, its heads to copy) of each inserted projection."""
        block = self.shape.family.attention
        query = ("query", block.query, self.head_units)
        if self.config.kv == "base":
            return [query]
        return [query, ("key", block.key, self.kv_units), ("value", block.value, self.kv_units)]

    def _ffn(self, prefix: str, layer: int) -> Iterator[InsertedTensor]:
        config, shape, block = self.config, self.shape, self.shape.family.ffn
        if config.ffn:
            yield from self._norm(f"{prefix}.norm", self._module(layer, block.norm))
            pairs = [(block.gate, block.up), *block.alternatives]
            for which, name in enumerate(("gate", "up")):
                if name == "gate" and block.ungated:
                    continue
                first = shape.ffn * which * block.fused
                rows = [unit + first for unit in self.ffn_units]
                modules = tuple(self._module(layer, pair[which]) for pair in pairs if pair[which])
                yield from self._input(f"{prefix}.{name}", modules, rows, shape.ffn_bias)
        yield from self._output(
            f"{prefix}.down", layer, block, shape.ffn, config.ffn, shape.ffn_bias
        )
        yield from self._post_norm(prefix, layer, block)

    def _norm(self, name: str, module: str) -> Iterator[InsertedTensor]:
        """A norm of the stream. It starts at ones where the base has no norm there."""
        form = (self.config.hidden,)
        source = self._norm_source(module, self.units) if module else None
        yield InsertedTensor(f"{name}.weight", form, "norm", source, "ones")
        if self.shape.family.norm_bias:
            source = self._source(module, self.units, kind="bias")
            yield InsertedTensor(f"{name}.bias", form, "bias", source)

    def _post_norm(
        self, prefix: str, layer: int, block: Attention | FeedForward
    ) -> Iterator[InsertedTensor]:
        if block.post_norm:
            source = self._norm_source(self._module(layer, block.post_norm), self.units)
            yield InsertedTensor(
                f"{prefix}.post_norm.weight", (self.config.hidden,), "norm", source
            )

    def _input(
        self,
        name: str,
        module: str | tuple[str, ...],
        rows: Indices,
        bias: bool,
        scale: float = 1.0,
    ) -> Iterator[InsertedTensor]:
        """`x W^h + u W^z (+ b)`. W^h copies rows of the base. W^z is zero at first, because u
        repeats units of x and would count them twice."""
        source = self._matrix_source(module, rows, scale)
        yield InsertedTensor(
            f"{name}.h.weight", (len(rows), self.shape.hidden), "matrix", source, "normal"
        )
        yield InsertedTensor(f"{name}.z.weight", (len(rows), self.config.hidden), "matrix")
        if bias:
            source = self._source(module, rows, kind="bias", scale=scale)
            yield InsertedTensor(f"{name}.bias", (len(rows),), "bias", source)

    def _output(
        self,
        name: str,
        layer: int,
        block: Attention | FeedForward,
        base_dim: int,
        inserted_dim: int,
        bias: bool,
    ) -> Iterator[InsertedTensor]:
        """`z += a W^h + a' W^z (+ b)`, a of width `base_dim` and a' of width `inserted_dim`. Where
        the family hides a, W^h reads the whole output of the branch, of width d."""
        hidden, scale = self.config.hidden, self.shape.residual_scale
        module = self._module(layer, block.last_linear)
        if block.read_at == "output":
            form = (hidden, self.shape.hidden)
            yield InsertedTensor(f"{name}.h.weight", form, "output", fill="units")
        else:
            source = self._matrix_source(module, self.units, scale)
            yield InsertedTensor(f"{name}.h.weight", (hidden, base_dim), "output", source)
        if inserted_dim:
            yield InsertedTensor(f"{name}.z.weight", (hidden, inserted_dim), "output")
        if bias and block.read_at == "input":
            source = self._source(module, self.units, kind="bias", scale=scale)
            yield InsertedTensor(f"{name}.bias", (hidden,), "bias", source)

    def _module(self, layer: int, part: str) -> str:
        return self.shape.family.module_name(layer, part) if part else ""

    def _matrix_source(
        self, module: str | tuple[str, ...], rows: Indices, scale: float
    ) -> CopySource:
        return self._source(module, rows, scale=scale, transposed=self.shape.family.transposed)

    def _norm_source(self, module: str, rows: Indices) -> CopySource:
        return self._source(module, rows, offset=self.shape.family.norm_offset)

    def _source(
        self,
        module: str | tuple[str, ...],
        rows: Indices | None = None,
        kind: str = "weight",
        **options: Any,
    ) -> CopySource:
        modules = (module,) if isinstance(module, str) else module
        stored_names = self.shape.family.stored_names
        names = tuple(name for path in modules for name in stored_names(f"{path}.{kind}"))
        return CopySource(names, rows, **options)


def plan_insertion(
    base: Checkpoint, signals: Iterable[str] = (), *, layers: str = "all", **options: Any
) -> Plan:
    """Plans an insertion for `base`. `signals` and `layers` are written as on the command line, the
    `options` are those of `resolve_config`. Raises OtterError for what does not fit the base."""
    shape = base_shape(base.config)
    config = resolve_config(
        shape,
        layers=parse_layers(layers, shape.layers),
        signals=tuple(map(parse_signal, signals)),
        **options,
    )
    return Plan(config, shape)


def evenly_spaced(count: int, total: int) -> Indices:
    """`count` of `total` indices, evenly spaced and distinct where count <= total."""
    return [index * total // count for index in range(count)]


def projection_rows(shape: BaseShape, name: str, heads: Indices) -> Indices:
    """Rows of the base's query, key or value projection that belong to `heads`."""
    c, fused = shape.head_dim, shape.family.attention.fused
    which = ("query", "key", "value").index(name)
    if fused == "interleaved":
        return head_rows([3 * head + which for head in heads], c)
    first = (0, shape.heads, shape.heads + shape.kv_heads)[which] if fused == "stacked" else 0
    return head_rows([head + first for head in heads], c)


def head_rows(heads: Indices, head_dim: int) -> Indices:
    """Rows of a projection that belong to `heads`."""
    return [head * head_dim + row for head in heads for row in range(head_dim)]
