"""The first way in which the base is read: hooks on its modules.

BaseCapture installs them: on the embedding (the stream starts), in each tapped layer, and on the
final norm (the stream ends). LayerCapture is one layer's share: it captures x, a and m, and runs
the layer of each stream when the base's layer is complete. Hooks change no tensor of the base."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, cast

from torch import Tensor, nn
from transformers.cache_utils import Cache

from otter_cli.core.errors import OtterError
from otter_cli.families.family import Attention, FeedForward
from otter_cli.families.shape import BaseShape
from otter_cli.model.activations import AttentionActivations, BranchActivations, SelectedPositions
from otter_cli.model.attention_hook import install_attention_hook
from otter_cli.model.backend import stream_backend
from otter_cli.model.cache import ensure_inserted_layer
from otter_cli.model.forward_context import (
    ACTIVE_CONTEXT,
    CapturingForward,
    ForwardContext,
    PendingLayer,
    ProjectionsByLayer,
    RecordingHook,
    SelectiveForward,
    run_inserted,
)
from otter_cli.model.fused_linear import BaseProjections
from otter_cli.model.insertion import Insertion
from otter_cli.model.rotary import Rotations, rotary_function


class LayerCapture:
    """Installs itself on layer `index` of the base."""

    def __init__(self, taps: BaseCapture, index: int) -> None:
        self.taps, self.index = taps, index
        self.layer = taps.layers[index]
        family, configs = taps.family, [one.config for one in taps.insertions.values()]
        # Else h is let go as early as the base does.
        self.reads_residual = any(config.norm == "base" for config in configs)
        self.attention = _block_module(self.layer, family.attention)
        self.apply_rotary = rotary_function(self.attention, family.attention)
        self.rotary_width = getattr(self.attention, "rotary_ndims", taps.head_dim)
        self._install(family.attention, self.attention, self._enter_attention, "attention")
        self._install(family.ffn, _block_module(self.layer, family.ffn), self._enter_ffn, "ffn")
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
        part, tap = self.layer.get_submodule, partial(CapturingForward, self.taps)
        if block.norm and self.reads_residual:
            tap(part(block.norm), _capture_residual)
        tap(module, enter)
        last = kind == "ffn"
        ends = last and not block.post_norm
        read = partial(self._read, kind, ends)
        if block.read_at == "input":
            tap(part(block.last_linear), read, last=ends)
        else:
            tap(module, read, last=ends, after=True)
        if block.post_norm:
            tap(part(block.post_norm), partial(self._read_branch, kind, last), last=last)

    def _enter_attention(self, record: ForwardContext, inputs: tuple[Any, ...], named: Any) -> None:
        if self.index == self.taps.first:
            self.taps.require_streams(record)
        normed = named["hidden_states"] if "hidden_states" in named else inputs[0]
        record.attention = AttentionActivations(
            normed,
            self._residual(record, self.taps.family.attention, normed),
            named=named,
        )

    def _enter_ffn(self, record: ForwardContext, inputs: tuple[Any, ...], named: Any) -> None:
        record.ffn = BranchActivations(
            inputs[0], self._residual(record, self.taps.family.ffn, inputs[0])
        )

    def _residual(
        self, record: ForwardContext, block: Attention | FeedForward, normed: Tensor
    ) -> Tensor | None:
        """h where the branch begins; what it reads, where the base has no norm before it."""
        return record.residual if block.norm else normed

    def _read(self, kind: str, ends: bool, record: ForwardContext, given: Any, named: Any) -> None:
        """What goes into the branch's last product, or comes out of it all."""
        getattr(record, kind).part = given[0] if isinstance(given, tuple) else given
        if ends:
            self._leave(record)

    def _read_branch(
        self, kind: str, ends: bool, record: ForwardContext, inputs: tuple[Tensor, ...], named: Any
    ) -> None:
        getattr(record, kind).branch = inputs[0]
        if ends:
            self._leave(record)

    def _leave(self, record: ForwardContext) -> None:
        attention, ffn = record.attention, record.ffn
        assert attention is not None and ffn is not None
        record.attention = record.ffn = None
        record.take(self, attention, ffn)

    def step(
        self,
        record: ForwardContext,
        attention: AttentionActivations,
        ffn: BranchActivations,
        names: Collection[str],
        made: ProjectionsByLayer,
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
                made.get((name, self.index), BaseProjections()),
                record.chosen if self.ends else None,
            )

    def _remember(
        self, start: int, cache: Cache, key: Tensor, value: Tensor
    ) -> tuple[Tensor, Tensor]:
        at = start + self.index
        ensure_inserted_layer(cache, at, depth=self.taps.depth, new_tokens=key.shape[-2])
        return cache.update(key, value, at)


def _capture_residual(record: ForwardContext, inputs: tuple[Tensor, ...], named: Any) -> None:
    record.residual = inputs[0]


def _block_module(layer: nn.Module, block: Attention | FeedForward) -> nn.Module:
    usual = hasattr(layer, block.module.partition(".")[0])
    if not usual and isinstance(block, Attention) and block.alternative_module:
        return layer.get_submodule(block.alternative_module)
    return layer.get_submodule(block.module)


_MOST_LAZY_TOKENS, _MOST_NATIVE_TOKENS = 64, 192


class BaseCapture:
    """The hooks of one base. They do nothing until `recording`."""

    def __init__(self, base: nn.Module, shape: BaseShape, insertions: nn.ModuleDict) -> None:
        self.insertions = {
            name: module for name, module in insertions.items() if isinstance(module, Insertion)
        }
        family = self.family = shape.family
        self.head_dim = shape.head_dim
        # Where a stream reads h itself, not what a norm made of it, a base that adds to h in place
        # would have changed it by the time that the stream gets there.
        self.may_wait = bool(family.attention.norm and family.ffn.norm) and all(
            one.config.norm == "own" for one in self.insertions.values()
        )
        self.layers = cast(nn.ModuleList, base.get_submodule(family.layers))
        self.depth = len(self.layers)
        self.native = {
            name: stream_backend(one, shape, self.depth, number)
            for number, (name, one) in enumerate(self.insertions.items(), 1)
            if one.config.hidden
        }
        self.attention: set[nn.Module] = set()
        self._install(base)

    @contextmanager
    def recording(
        self, grad: bool, *, deferred: bool = False, chosen: SelectedPositions | None = None
    ) -> Iterator[ForwardContext]:
        """Base calls inside carry the streams; the record then holds the last one's states. Of a
        `deferred` call it holds what the streams are to read; of `chosen` positions, states at
        these alone."""
        record = ForwardContext(self, grad, deferred=deferred, chosen=chosen)
        token = ACTIVE_CONTEXT.set(record)
        try:
            yield record
        finally:
            ACTIVE_CONTEXT.reset(token)

    def _install(self, base: nn.Module) -> None:
        at, on, family = base.get_submodule, partial(RecordingHook, self), self.family
        at(family.decoder).register_forward_pre_hook(on(self._begin))
        at(family.embedding).register_forward_hook(on(partial(run_inserted, self._start)))
        if family.positions:
            place = on(partial(run_inserted, partial(self._place, family.positions.offset)))
            at(family.positions.module).register_forward_pre_hook(place, with_kwargs=True)
        at(family.final_norm).register_forward_hook(on(self._finish))
        chosen = {index for one in self.insertions.values() for index in one.config.layers}
        self.first = min(chosen, default=0)
        for index in sorted(chosen):
            self.attention.add(LayerCapture(self, index).attention)
        self.ending = self._ending(self.layers[-1])
        for module in self.ending:  # outside of the taps, which see the chosen rows alone
            SelectiveForward(self, module)

    def _ending(self, last: nn.Module) -> list[nn.Module]:
        """What the last layer runs at the chosen positions alone."""
        attention, ffn = self.family.attention, self.family.ffn
        modules = [_block_module(last, ffn)]
        if ffn.read_at == "input" and not ffn.last_linear.startswith(ffn.module + "."):
            modules.append(last.get_submodule(ffn.last_linear))
        if attention.read_at == "input":
            modules.append(last.get_submodule(attention.last_linear))
        return modules

    def require_streams(self, record: ForwardContext) -> None:
        """Raises OtterError where the base was called without token ids."""
        missing = [
            n for n, i in self.insertions.items() if i.config.hidden and n not in record.computed
        ]
        if missing:
            raise OtterError(
                f"insertion {missing[0]!r} got no token ids, only inputs_embeds",
                hint="the inserted stream starts from token ids; pass input_ids",
            )

    def not_native(self, record: ForwardContext, pending: Sequence[PendingLayer]) -> list[str]:
        """Takes the streams that native code can through the pending layers: names of the rest."""
        left = []
        for name, z in record.computed.items():
            if not (mine := self._of(name, pending)):
                continue
            done = self.native[name](z, mine)
            if done is None:
                left.append(name)
                continue
            record.computed[name], v = done
            if v is not None:
                record.inserted_state[name] = v
        return left

    def made_at_once(
        self, pending: Sequence[PendingLayer], names: Collection[str]
    ) -> ProjectionsByLayer:
        """What the pending layers of these streams take from the base."""
        made: dict[tuple[str, int], BaseProjections] = {}
        for name, one in self.insertions.items():
            if name in names:
                mine = self._of(name, pending)
                products = one.layered([(attention, ffn) for _, attention, ffn in mine])
                made |= {(name, e[0].index): p for e, p in zip(mine, products, strict=True)}
        return made

    def _of(self, name: str, pending: Sequence[PendingLayer]) -> list[PendingLayer]:
        layers = self.insertions[name].config.layers
        return [each for each in pending if each[0].index in layers]

    def _begin(self, record: ForwardContext, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        record.seen.clear()
        record.pending.clear()
        record.computed.clear()
        record.inserted_state.clear()
        record.rotations = Rotations()

    def _start(
        self, record: ForwardContext, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor
    ) -> None:
        tokens = inputs[0]
        waits = record.deferred or _on_cpu_within(tokens, _MOST_LAZY_TOKENS)
        record.lazy = self.may_wait and not record.grad and waits
        record.native = not record.grad and _on_cpu_within(tokens, _MOST_NATIVE_TOKENS)
        for name, insertion in self.insertions.items():
            if insertion.config.hidden:
                record.computed[name] = insertion.start(tokens)

    def _place(
        self,
        offset: int,
        record: ForwardContext,
        module: nn.Module,
        inputs: tuple[Tensor, ...],
        named: dict[str, Any],
    ) -> None:
        positions = named["position_ids"] if "position_ids" in named else inputs[0]
        for name, z in record.computed.items():
            if (table := self.insertions[name].positions) is not None:
                record.computed[name] = z + table(positions + offset)

    def _finish(
        self, record: ForwardContext, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor
    ) -> None:
        record.settle()
        record.residual, record.base_state = inputs[0], output
        if (chosen := record.chosen) is not None:
            record.residual, record.base_state = chosen.of(inputs[0]), chosen.of(output)
        if not record.deferred:
            self.end(record)

    def end(self, record: ForwardContext) -> None:
        """v of every stream, whose layers run now if they have not."""
        run_inserted(self._end, record)

    def _end(self, record: ForwardContext) -> None:
        for name, z in record.streams.items():
            if name in record.inserted_state:  # by native code, with its layers
                continue
            z = z if record.chosen is None else record.chosen.of(z)
            record.inserted_state[name] = self.insertions[name].norm(z, record.residual)


def _on_cpu_within(tokens: Tensor, most: int) -> bool:
    """Few rows wait, and the streams run in one go after the base: on a CPU its weights have passed
    through the caches by then, so that each of their small operations runs several times as fast.
    What the taps hold meanwhile grows with the rows, so more of them go layer by layer, by native
    code as long as torch's products are no faster."""
    return tokens.device.type == "cpu" and tokens.numel() <= most


install_attention_hook()
