"""Taps: hooks that hand what passes through base modules to the inserted stream, and never anything
back.

Every hook returns None, so that torch passes the base's own tensors on. Attention functions are
tapped where every modelling file looks them up, so that inserted heads repeat the base's call with
its own mask, scale and window.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache
from transformers.modeling_utils import AttentionInterface

from otter_cli.core.errors import OtterError
from otter_cli.families import Attention, Family, FeedForward
from otter_cli.model.branches import AttentionCall, BranchTap
from otter_cli.model.cache import own_layer
from otter_cli.model.rotary import rotation
from otter_cli.model.stream import Insertion


@dataclass
class Record:
    """One forward of the base with its inserted streams; `grad`: whether they build a graph."""

    taps: Taps
    grad: bool
    streams: dict[str, Tensor] = field(default_factory=dict)  # z, [batch, tokens, D]
    branch: BranchTap | None = None
    residual: Tensor | None = None
    base_state: Tensor | None = None  # y, [batch, tokens, d]
    inserted_state: dict[str, Tensor] = field(default_factory=dict)  # v, [batch, tokens, D]


_active: ContextVar[Record | None] = ContextVar("otter_record", default=None)
_inside: ContextVar[bool] = ContextVar("otter_inside", default=False)


def inside_insertion() -> bool:
    """Whether the operation that runs now is the insertion's: what a trace needs to tell the two
    apart."""
    return _inside.get()


class Taps:
    """The hooks of one base. They do nothing until `recording`."""

    def __init__(
        self, base: nn.Module, family: Family, parallel: bool, insertions: nn.ModuleDict
    ) -> None:
        self.insertions = {
            name: module for name, module in insertions.items() if isinstance(module, Insertion)
        }
        self.family, self.parallel = family, parallel
        self.layers = cast(nn.ModuleList, base.get_submodule(family.layers))
        self.depth = len(self.layers)
        self.attention: dict[nn.Module, int] = {}
        self._install(base)

    @contextmanager
    def recording(self, grad: bool) -> Iterator[Record]:
        """Base calls inside carry the streams; the record then holds the last one's states."""
        record = Record(self, grad)
        token = _active.set(record)
        try:
            yield record
        finally:
            _active.reset(token)

    def _install(self, base: nn.Module) -> None:
        at, hook, family = base.get_submodule, self._hook, self.family
        at(family.decoder).register_forward_pre_hook(hook(self._begin))
        at(family.embedding).register_forward_hook(hook(self._start))
        if family.positions:
            place = hook(partial(self._place, family.positions.offset))
            at(family.positions.module).register_forward_pre_hook(place, with_kwargs=True)
        norm = at(family.final_norm)
        norm.register_forward_pre_hook(hook(self._keep_residual))
        norm.register_forward_hook(hook(self._finish))
        for index in sorted(
            {i for stream in self.insertions.values() for i in stream.config.layers}
        ):
            self._install_branch(index, "attention", family.attention)
            self._install_branch(index, "ffn", family.ffn)

    def _install_branch(self, index: int, kind: str, block: Attention | FeedForward) -> None:
        part, hook = self.layers[index].get_submodule, self._hook
        if isinstance(block, Attention):
            usual = hasattr(self.layers[index], block.module) or not block.elsewhere
            module, enter = part(block.module if usual else block.elsewhere), self._enter_attention
            self.attention[module] = index
        else:
            module, enter = part(block.module), self._enter_ffn
        if block.norm:
            part(block.norm).register_forward_pre_hook(hook(self._keep_residual))
        module.register_forward_pre_hook(hook(partial(enter, index)), with_kwargs=True)
        read = partial(self._read, index, kind, not block.post_norm)
        if block.tap == "input":
            part(block.end).register_forward_pre_hook(hook(read))
        else:
            module.register_forward_hook(hook(read))
        if block.post_norm:
            land = hook(partial(self._read_branch, index, kind))
            part(block.post_norm).register_forward_pre_hook(land)

    def _hook(self, handler: Callable[..., None]) -> Callable[..., None]:
        def hook(module: nn.Module, *arguments: Any) -> None:
            record = _active.get()
            if record is None or record.taps is not self:
                return
            token = _inside.set(True)
            try:
                with torch.set_grad_enabled(record.grad):
                    handler(record, module, *arguments)
            finally:
                _inside.reset(token)

        return hook

    def _begin(self, record: Record, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        record.streams.clear()

    def _start(
        self, record: Record, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor
    ) -> None:
        for name, insertion in self.insertions.items():
            if insertion.config.hidden:
                record.streams[name] = insertion.start(inputs[0])

    def _place(
        self,
        offset: int,
        record: Record,
        module: nn.Module,
        inputs: tuple[Tensor, ...],
        named: dict[str, Any],
    ) -> None:
        positions = named["position_ids"] if "position_ids" in named else inputs[0]
        for name in record.streams:
            if (table := self.insertions[name].positions) is not None:
                record.streams[name] = record.streams[name] + table(positions + offset)

    def _keep_residual(self, record: Record, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        record.residual = inputs[0]

    def _enter_attention(
        self,
        index: int,
        record: Record,
        module: nn.Module,
        inputs: tuple[Any, ...],
        named: dict[str, Any],
    ) -> None:
        self._require_streams(record)
        block = self.family.attention
        normed = named["hidden_states"] if "hidden_states" in named else inputs[0]
        cache = next((value for value in named.values() if isinstance(value, Cache)), None)
        residual = record.residual if block.norm else normed
        assert residual is not None
        record.branch = BranchTap(
            residual=residual,
            normed=normed,
            entry=dict(record.streams),
            rotate=rotation(module, named.get("position_embeddings"), block),
            remember=partial(self._remember, cache, index),
        )

    def _enter_ffn(
        self,
        index: int,
        record: Record,
        module: nn.Module,
        inputs: tuple[Tensor, ...],
        named: dict[str, Any],
    ) -> None:
        before = record.branch
        assert before is not None
        residual = record.residual if self.family.ffn.norm else inputs[0]
        assert residual is not None
        record.branch = BranchTap(
            residual=_like(residual, before.normed),
            normed=_like(inputs[0], before.normed),
            entry=before.entry if self.parallel else dict(record.streams),
        )

    def _read(
        self,
        index: int,
        kind: str,
        land: bool,
        record: Record,
        module: nn.Module,
        inputs: tuple[Any, ...],
        output: Any = None,
    ) -> None:
        """The tap itself: what goes into the branch's last product, or all that comes out."""
        assert record.branch is not None
        part = inputs[0] if output is None else output
        part = part[0] if isinstance(part, tuple) else part
        record.branch.part = _like(part, record.branch.normed)
        if land:
            self._land(index, kind, record)

    def _read_branch(
        self, index: int, kind: str, record: Record, module: nn.Module, inputs: tuple[Tensor, ...]
    ) -> None:
        assert record.branch is not None
        record.branch.branch = inputs[0]
        self._land(index, kind, record)

    def _land(self, index: int, kind: str, record: Record) -> None:
        for name, insertion in self.insertions.items():
            if index in insertion.config.layers:
                inserted = getattr(insertion.layers[str(index)], kind)
                record.streams[name] = inserted(name, record.streams[name], record.branch)

    def _finish(
        self, record: Record, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor
    ) -> None:
        record.base_state = output
        for name, z in record.streams.items():
            record.inserted_state[name] = self.insertions[name].norm(z, record.residual)

    def _remember(
        self, cache: Cache | None, index: int, name: str, key: Tensor, value: Tensor
    ) -> tuple[Tensor, Tensor]:
        if cache is None:
            return key, value
        # Cache layers of insertions follow the base's: so generate, beam search and cropping move
        # both.
        names = list(self.insertions)
        at = self.depth + names.index(name) * self.depth + index
        own_layer(cache, at, depth=self.depth, new_tokens=key.shape[-2])
        return cache.update(key, value, at)

    def _require_streams(self, record: Record) -> None:
        missing = [
            n for n, i in self.insertions.items() if i.config.hidden and n not in record.streams
        ]
        if missing:
            raise OtterError(
                f"insertion {missing[0]!r} got no token ids, only inputs_embeds",
                hint="the inserted stream starts from token ids; pass input_ids",
            )


def _like(tensor: Tensor, normed: Tensor) -> Tensor:
    """[batch, tokens, ...] of what some modelling files flatten to [batch * tokens, ...]."""
    return tensor.reshape(*normed.shape[:-1], tensor.shape[-1])


def _tap_attention_functions() -> None:
    """Wraps the one place where modelling files look up their attention function. Without a record
    it is as before."""
    look_up = AttentionInterface.get_interface

    def get_interface(
        self: AttentionInterface, name: str, default: Callable[..., Any]
    ) -> Callable[..., Any]:
        function = look_up(self, name, default)
        record = _active.get()
        if record is None:
            return function

        def tapped(
            module: nn.Module,
            query: Tensor,
            key: Tensor,
            value: Tensor,
            mask: Tensor | None,
            **arguments: Any,
        ) -> tuple[Tensor, Any]:
            if record.branch is not None and module in record.taps.attention:
                record.branch.call = AttentionCall(function, module, key, value, mask, arguments)
            return function(module, query, key, value, mask, **arguments)

        return tapped

    AttentionInterface.get_interface = get_interface


_tap_attention_functions()
