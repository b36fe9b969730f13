"""The taps of one decoder layer: what goes into its branches, what its stream parts read, and the
stream's own step when the layer is through."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from transformers.cache_utils import Cache

from otter_cli.families import Attention, FeedForward
from otter_cli.model.branch import AttentionTap, BranchTap
from otter_cli.model.cache import own_layer
from otter_cli.model.joint import OfBase
from otter_cli.model.record import Record, hook
from otter_cli.model.rotary import rotary_function

if TYPE_CHECKING:
    from otter_cli.model.taps import Taps


# By insertion and layer.
MadeAtOnce = Mapping[tuple[str, int], OfBase]


class LayerHooks:
    """Installs itself on layer `index` of the base."""

    def __init__(self, taps: Taps, index: int) -> None:
        self.taps, self.index = taps, index
        self.layer = taps.layers[index]
        family, configs = taps.family, [one.config for one in taps.insertions.values()]
        # Else h is let go as early as the base does.
        self.reads_residual = any(config.norm == "base" for config in configs)
        self.attention = _module(self.layer, family.attention)
        self.apply_rotary = rotary_function(self.attention, family.attention)
        self.rotary_width = getattr(self.attention, "rotary_ndims", taps.head_dim)
        self._install(family.attention, self.attention, self._enter_attention, "attention")
        self._install(family.ffn, _module(self.layer, family.ffn), self._enter_ffn, "ffn")
        # An insertion's cache layers follow the base's, and those of the insertions before it.
        self.parts = [
            (name, insertion.layers[str(index)], partial(self._remember, number * taps.depth))
            for number, (name, insertion) in enumerate(taps.insertions.items(), 1)
            if index in insertion.config.layers
        ]

    def _install(
        self, block: Attention | FeedForward, module: nn.Module, enter: Any, kind: str
    ) -> None:
        part, on = self.layer.get_submodule, partial(hook, self.taps)
        if block.norm and self.reads_residual:
            part(block.norm).register_forward_pre_hook(on(keep_residual))
        module.register_forward_pre_hook(on(enter), with_kwargs=True)
        last = kind == "ffn"
        read = on(partial(self._read, kind, last and not block.post_norm))
        if block.tap == "input":
            part(block.end).register_forward_pre_hook(read)
        else:
            module.register_forward_hook(read)
        if block.post_norm:
            read = on(partial(self._read_branch, kind, last))
            part(block.post_norm).register_forward_pre_hook(read)

    def _enter_attention(
        self, record: Record, module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]
    ) -> None:
        if self.index == self.taps.first:
            self.taps.require_streams(record)
        normed = named["hidden_states"] if "hidden_states" in named else inputs[0]
        record.attention = AttentionTap(
            normed,
            self._residual(record, self.taps.family.attention, normed),
            named=named,
        )

    def _enter_ffn(
        self, record: Record, module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]
    ) -> None:
        record.ffn = BranchTap(inputs[0], self._residual(record, self.taps.family.ffn, inputs[0]))

    def _residual(
        self, record: Record, block: Attention | FeedForward, normed: Tensor
    ) -> Tensor | None:
        """h where the branch begins; what it reads, where the base has no norm before it."""
        return record.residual if block.norm else normed

    def _read(
        self,
        kind: str,
        last: bool,
        record: Record,
        module: nn.Module,
        inputs: tuple[Any, ...],
        output: Any = None,
    ) -> None:
        """What goes into the branch's last product; as a hook on its end, what comes out of it."""
        part = inputs[0] if output is None else output
        getattr(record, kind).part = part[0] if isinstance(part, tuple) else part
        if last:
            self._leave(record)

    def _read_branch(
        self, kind: str, last: bool, record: Record, module: nn.Module, inputs: tuple[Tensor, ...]
    ) -> None:
        getattr(record, kind).branch = inputs[0]
        if last:
            self._leave(record)

    def _leave(self, record: Record) -> None:
        attention, ffn = record.attention, record.ffn
        assert attention is not None and ffn is not None
        record.attention = record.ffn = None
        record.take(self, attention, ffn)

    def step(
        self, record: Record, attention: AttentionTap, ffn: BranchTap, made: MadeAtOnce
    ) -> None:
        """The layer of every stream."""
        rotate = partial(
            record.rotations.rotate,
            apply=self.apply_rotary,
            width=self.rotary_width,
            embeddings=attention.embeddings,
        )
        for name, layer, remember in self.parts:
            record.computed[name] = layer(
                record.computed[name],
                attention,
                ffn,
                rotate,
                remember,
                made.get((name, self.index), OfBase()),
            )

    def _remember(
        self, start: int, cache: Cache, key: Tensor, value: Tensor
    ) -> tuple[Tensor, Tensor]:
        at = start + self.index
        own_layer(cache, at, depth=self.taps.depth, new_tokens=key.shape[-2])
        return cache.update(key, value, at)


def keep_residual(record: Record, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    record.residual = inputs[0]


def _module(layer: nn.Module, block: Attention | FeedForward) -> nn.Module:
    usual = hasattr(layer, block.module.partition(".")[0])
    if not usual and isinstance(block, Attention) and block.elsewhere:
        return layer.get_submodule(block.elsewhere)
    return layer.get_submodule(block.module)
