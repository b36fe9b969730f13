"""Taps: hooks that hand the inputs of base modules to the inserted stream, and never anything back.

Every hook returns None, so that torch passes the base's own tensors on. Attention functions are
tapped where every
modelling file looks them up, so that inserted heads repeat the base's call with its own mask, scale
and window.
"""

from __future__ import annotations

import sys
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
from otter_cli.families import Family
from otter_cli.model.cache import own_layer
from otter_cli.model.stream import AttentionCall, Insertion, LayerTap


@dataclass
class Record:
    """One forward of the base with its inserted streams; `grad`: whether they build a graph."""

    taps: Taps
    grad: bool
    streams: dict[str, Tensor] = field(default_factory=dict)  # z, [batch, tokens, D]
    layer: LayerTap = field(default_factory=LayerTap)
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

    def __init__(self, base: nn.Module, family: Family, insertions: nn.ModuleDict) -> None:
        self.insertions = {
            name: module for name, module in insertions.items() if isinstance(module, Insertion)
        }
        self.layers = cast(nn.ModuleList, base.get_submodule(family.layers))
        self.depth = len(self.layers)
        self.attention: dict[nn.Module, int] = {}
        self._install(base, family)

    @contextmanager
    def recording(self, grad: bool) -> Iterator[Record]:
        """Base calls inside carry the streams; the record then holds the last one's states."""
        record = Record(self, grad)
        token = _active.set(record)
        try:
            yield record
        finally:
            _active.reset(token)

    def _install(self, base: nn.Module, family: Family) -> None:
        base.get_submodule(family.embedding).register_forward_hook(self._hook(self._start))
        norm = base.get_submodule(family.final_norm)
        norm.register_forward_pre_hook(self._hook(self._keep_residual))
        norm.register_forward_hook(self._hook(self._finish))
        for index in sorted(
            {i for insertion in self.insertions.values() for i in insertion.config.layers}
        ):
            part = self.layers[index].get_submodule
            attention, ffn = family.attention, family.ffn
            self.attention[part(attention.module)] = index
            for norm_name in (attention.norm, ffn.norm):
                part(norm_name).register_forward_pre_hook(self._hook(self._keep_residual))
            part(attention.module).register_forward_pre_hook(
                self._hook(partial(self._enter_attention, index)), with_kwargs=True
            )
            part(attention.out).register_forward_pre_hook(self._hook(partial(self._attend, index)))
            part(ffn.module).register_forward_pre_hook(self._hook(self._enter_ffn))
            part(ffn.down).register_forward_pre_hook(self._hook(partial(self._feed, index)))

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

    def _start(
        self, record: Record, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor
    ) -> None:
        for name, insertion in self.insertions.items():
            if insertion.config.hidden:
                record.streams[name] = insertion.start(inputs[0])

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
        normed = named["hidden_states"] if "hidden_states" in named else inputs[0]
        cache = next((value for value in named.values() if isinstance(value, Cache)), None)
        record.layer = LayerTap(
            residual=record.residual,
            normed=normed,
            rotate=rotation(module, named.get("position_embeddings")),
            remember=partial(self._remember, cache, index),
        )

    def _attend(
        self, index: int, record: Record, module: nn.Module, inputs: tuple[Tensor, ...]
    ) -> None:
        for name, layer in self._layers(index):
            record.streams[name] = layer.attention(record.streams[name], record.layer, inputs[0])

    def _enter_ffn(self, record: Record, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        record.layer = LayerTap(residual=record.residual, normed=inputs[0])

    def _feed(
        self, index: int, record: Record, module: nn.Module, inputs: tuple[Tensor, ...]
    ) -> None:
        for name, layer in self._layers(index):
            record.streams[name] = layer.ffn(record.streams[name], record.layer, inputs[0])

    def _finish(
        self, record: Record, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor
    ) -> None:
        record.base_state = output
        for name, z in record.streams.items():
            record.inserted_state[name] = self.insertions[name].norm(z, record.residual)

    def _layers(self, index: int) -> Iterator[tuple[str, Any]]:
        for name, insertion in self.insertions.items():
            if index in insertion.config.layers:
                yield name, insertion.layers[str(index)]

    def _remember(
        self, cache: Cache | None, index: int, name: str, key: Tensor, value: Tensor
    ) -> tuple[Tensor, Tensor]:
        if cache is None:
            return key, value
        # Cache layers of insertions follow the base's: so generate, beam search and cropping move
        # both.
        names = list(self.insertions)
        at = self.depth + names.index(name) * self.depth + index
        own_layer(cache, at, like=index, new_tokens=key.shape[-2])
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


def rotation(
    module: nn.Module, embeddings: tuple[Tensor, Tensor] | None
) -> Callable[[Tensor], Tensor]:
    """The rotary embedding of the base's own modelling file, for one tensor [batch, heads, tokens,
    head_dim]."""
    if embeddings is None:
        return lambda heads: heads
    apply = sys.modules[type(module).__module__].apply_rotary_pos_emb
    cos, sin = embeddings
    return lambda heads: apply(heads, heads[:, :1], cos, sin)[0].to(heads.dtype)


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
            if module in record.taps.attention:
                record.layer.call = AttentionCall(function, module, key, value, mask, arguments)
            return function(module, query, key, value, mask, **arguments)

        return tapped

    AttentionInterface.get_interface = get_interface


_tap_attention_functions()
