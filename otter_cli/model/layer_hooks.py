"""The taps of one decoder layer: what goes into its branches, what its stream parts read, and the
stream's own step when the layer is through."""

from __future__ import annotations

from collections.abc import Collection
from functools import partial
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from transformers.cache_utils import Cache

from otter_cli.families import Attention, FeedForward
from otter_cli.model.branch import AttentionTap, BranchTap
from otter_cli.model.cache import own_layer
from otter_cli.model.joint import OfBase
from otter_cli.model.record import MadeAtOnce, Record, Tapped
from otter_cli.model.rotary import rotary_function

if TYPE_CHECKING:
    from otter_cli.model.taps import Taps


class LayerHooks:
    """Installs itself on layer `index` of the base."""

    def __init__(self, taps: Taps, index: int) -> None:
        self.taps, self.index = taps, index
        self.layer = taps.layers[index]
        family, configs = taps.family, [one.config for one in taps.insertions.values()]
        # Else h is let go as early as the base does.
        self.reads_residual = any(config.norm == "base" for config in configs)
        self.attention = module_of(self.layer, family.attention)
        self.apply_rotary = rotary_function(self.attention, family.attention)
        self.rotary_width = getattr(self.attention, "rotary_ndims", taps.head_dim)
        self._install(family.attention, self.attention, self._enter_attention, "attention")
        self._install(family.ffn, module_of(self.layer, family.ffn), self._enter_ffn, "ffn")
        self.ends = index == taps.depth - 1
        # An insertion's cache layers follow the base's, and those of the insertions before it.
        self.parts = [
            (name, insertion.layers[str(index)], partial(self._remember, number * taps.depth))
            for number, (name, insertion) in enumerate(taps.insertions.items(), 1)
            if index in insertion.config.layers
        ]

    def _install(
        self, block: Attention | FeedForward, module: nn.Module, enter: Any, kind: str
    ) -> None:
        part, tap = self.layer.get_submodule, partial(Tapped, self.taps)
        if block.norm and self.reads_residual:
            tap(part(block.norm), keep_residual)
        tap(module, enter)
        last = kind == "ffn"
        ends = last and not block.post_norm
        read = partial(self._read, kind, ends)
        if block.tap == "input":
            tap(part(block.end), read, last=ends)
        else:
            tap(module, read, last=ends, after=True)
        if block.post_norm:
            tap(part(block.post_norm), partial(self._read_branch, kind, last), last=last)

    def _enter_attention(self, record: Record, inputs: tuple[Any, ...], named: Any) -> None:
        if self.index == self.taps.first:
            self.taps.require_streams(record)
        normed = named["hidden_states"] if "hidden_states" in named else inputs[0]
        record.attention = AttentionTap(
            normed,
            self._residual(record, self.taps.family.attention, normed),
            named=named,
        )

    def _enter_ffn(self, record: Record, inputs: tuple[Any, ...], named: Any) -> None:
        record.ffn = BranchTap(inputs[0], self._residual(record, self.taps.family.ffn, inputs[0]))

    def _residual(
        self, record: Record, block: Attention | FeedForward, normed: Tensor
    ) -> Tensor | None:
        """h where the branch begins; what it reads, where the base has no norm before it."""
        return record.residual if block.norm else normed

    def _read(self, kind: str, ends: bool, record: Record, given: Any, named: Any) -> None:
        """What goes into the branch's last product, or comes out of it all."""
        getattr(record, kind).part = given[0] if isinstance(given, tuple) else given
        if ends:
            self._leave(record)

    def _read_branch(
        self, kind: str, ends: bool, record: Record, inputs: tuple[Tensor, ...], named: Any
    ) -> None:
        getattr(record, kind).branch = inputs[0]
        if ends:
            self._leave(record)

    def _leave(self, record: Record) -> None:
        attention, ffn = record.attention, record.ffn
        assert attention is not None and ffn is not None
        record.attention = record.ffn = None
        record.take(self, attention, ffn)

    def step(
        self,
        record: Record,
        attention: AttentionTap,
        ffn: BranchTap,
        names: Collection[str],
        made: MadeAtOnce,
    ) -> None:
        """The layer of the streams of these names."""
        rotate = partial(
            record.rotations.rotate,
            apply=self.apply_rotary,
            width=self.rotary_width,
            embeddings=attention.embeddings,
        )
        for name, layer, remember in self.parts:
            if name not in names:
                continue
            record.computed[name] = layer(
                record.computed[name],
                attention,
                ffn,
                rotate,
                remember,
                made.get((name, self.index), OfBase()),
                record.chosen if self.ends else None,
            )

    def _remember(
        self, start: int, cache: Cache, key: Tensor, value: Tensor
    ) -> tuple[Tensor, Tensor]:
        at = start + self.index
        own_layer(cache, at, depth=self.taps.depth, new_tokens=key.shape[-2])
        return cache.update(key, value, at)


def keep_residual(record: Record, inputs: tuple[Tensor, ...], named: Any) -> None:
    record.residual = inputs[0]


def module_of(layer: nn.Module, block: Attention | FeedForward) -> nn.Module:
    usual = hasattr(layer, block.module.partition(".")[0])
    if not usual and isinstance(block, Attention) and block.elsewhere:
        return layer.get_submodule(block.elsewhere)
    return layer.get_submodule(block.module)
