"""The taps of one branch of one layer: what goes into it, what its stream part reads, where that
lands."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor, nn
from transformers.cache_utils import Cache

from otter_cli.families import Attention, FeedForward
from otter_cli.model.branch import BranchTap
from otter_cli.model.cache import own_layer
from otter_cli.model.record import Record, hook
from otter_cli.model.rotary import rotation

if TYPE_CHECKING:
    from otter_cli.model.taps import Taps


class BranchHooks:
    """Installs itself on `layer`; `index` is the layer's."""

    def __init__(self, taps: Taps, index: int, layer: nn.Module, kind: Literal["attention", "ffn"]):
        self.taps, self.index, self.kind = taps, index, kind
        self.block: Attention | FeedForward = getattr(taps.family, kind)
        self.module = _module(layer, self.block)
        self._install(layer)

    def _install(self, layer: nn.Module) -> None:
        block, part, on = self.block, layer.get_submodule, partial(hook, self.taps)
        if block.norm:
            part(block.norm).register_forward_pre_hook(on(keep_residual))
        enter = on(self._enter_attention if self.kind == "attention" else self._enter_ffn)
        self.module.register_forward_pre_hook(enter, with_kwargs=True)
        if block.tap == "input":
            part(block.end).register_forward_pre_hook(on(self._read))
        else:
            self.module.register_forward_hook(on(self._read))
        if block.post_norm:
            part(block.post_norm).register_forward_pre_hook(on(self._read_branch))

    def _enter_attention(
        self, record: Record, module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]
    ) -> None:
        self.taps.require_streams(record)
        normed = named["hidden_states"] if "hidden_states" in named else inputs[0]
        cache = next((value for value in named.values() if isinstance(value, Cache)), None)
        assert isinstance(self.block, Attention)
        record.branch = BranchTap(
            residual=self._residual(record, normed),
            normed=normed,
            entry=dict(record.streams),
            rotate=rotation(module, named.get("position_embeddings"), self.block),
            remember=partial(self._remember, cache),
        )

    def _enter_ffn(
        self, record: Record, module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]
    ) -> None:
        attention = record.branch
        assert attention is not None
        record.branch = BranchTap(
            residual=_like(self._residual(record, inputs[0]), attention.normed),
            normed=_like(inputs[0], attention.normed),
            entry=attention.entry if self.taps.parallel else dict(record.streams),
        )

    def _residual(self, record: Record, normed: Tensor) -> Tensor:
        """h where the branch begins; what it reads, where the base has no norm before it."""
        if not self.block.norm:
            return normed
        assert record.residual is not None
        return record.residual

    def _read(
        self, record: Record, module: nn.Module, inputs: tuple[Any, ...], output: Any = None
    ) -> None:
        """What goes into the branch's last product; as a hook on its end, what comes out of it."""
        assert record.branch is not None
        part = inputs[0] if output is None else output
        part = part[0] if isinstance(part, tuple) else part
        record.branch.part = _like(part, record.branch.normed)
        if not self.block.post_norm:
            self._land(record)

    def _read_branch(self, record: Record, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        assert record.branch is not None
        record.branch.branch = inputs[0]
        self._land(record)

    def _land(self, record: Record) -> None:
        for name, insertion in self.taps.insertions.items():
            if self.index in insertion.config.layers:
                inserted = getattr(insertion.layers[str(self.index)], self.kind)
                record.streams[name] = inserted(name, record.streams[name], record.branch)

    def _remember(
        self, cache: Cache | None, name: str, key: Tensor, value: Tensor
    ) -> tuple[Tensor, Tensor]:
        if cache is None:
            return key, value
        # Cache layers of insertions follow the base's: so generate, beam search and cropping move
        # both.
        depth, names = self.taps.depth, list(self.taps.insertions)
        at = depth + names.index(name) * depth + self.index
        own_layer(cache, at, depth=depth, new_tokens=key.shape[-2])
        return cache.update(key, value, at)


def keep_residual(record: Record, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    record.residual = inputs[0]


def _module(layer: nn.Module, block: Attention | FeedForward) -> nn.Module:
    usual = hasattr(layer, block.module.partition(".")[0])
    if not usual and isinstance(block, Attention) and block.elsewhere:
        return layer.get_submodule(block.elsewhere)
    return layer.get_submodule(block.module)


def _like(tensor: Tensor, normed: Tensor) -> Tensor:
    """[batch, tokens, ...] of what some modelling files flatten to [batch * tokens, ...]."""
    if tensor.ndim == normed.ndim:
        return tensor
    return tensor.reshape(*normed.shape[:-1], tensor.shape[-1])
