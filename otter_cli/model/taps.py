"""Taps: hooks that hand what passes through base modules to the inserted stream, and never anything
back; where a gradient pass has chosen positions, the last layer ends at these (chosen.py)."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, cast

from torch import Tensor, nn

from otter_cli.core.errors import OtterError
from otter_cli.families import BaseShape
from otter_cli.model.attention_function import tap_attention_functions
from otter_cli.model.chosen import AtChosen, Chosen
from otter_cli.model.joint import OfBase
from otter_cli.model.layer_hooks import LayerHooks, module_of
from otter_cli.model.backend import stream_backend
from otter_cli.model.record import ACTIVE, Hook, MadeAtOnce, Pending, Record, compute
from otter_cli.model.rotary import Rotations
from otter_cli.model.stream import Insertion

_FEW, _MANY = 64, 192


class Taps:
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
        self, grad: bool, *, deferred: bool = False, chosen: Chosen | None = None
    ) -> Iterator[Record]:
        """Base calls inside carry the streams; the record then holds the last one's states. Of a
        `deferred` call it holds what the streams are to read; of `chosen` positions, states at
        these alone."""
        record = Record(self, grad, deferred=deferred, chosen=chosen)
        token = ACTIVE.set(record)
        try:
            yield record
        finally:
            ACTIVE.reset(token)

    def _install(self, base: nn.Module) -> None:
        at, on, family = base.get_submodule, partial(Hook, self), self.family
        at(family.decoder).register_forward_pre_hook(on(self._begin))
        at(family.embedding).register_forward_hook(on(partial(compute, self._start)))
        if family.positions:
            place = on(partial(compute, partial(self._place, family.positions.offset)))
            at(family.positions.module).register_forward_pre_hook(place, with_kwargs=True)
        at(family.final_norm).register_forward_hook(on(self._finish))
        chosen = {index for one in self.insertions.values() for index in one.config.layers}
        self.first = min(chosen, default=0)
        for index in sorted(chosen):
            self.attention.add(LayerHooks(self, index).attention)
        self.ending = self._ending(self.layers[-1])
        for module in self.ending:  # outside of the taps, which see the chosen rows alone
            AtChosen(self, module)

    def _ending(self, last: nn.Module) -> list[nn.Module]:
        """What the last layer runs at the chosen positions alone."""
        attention, ffn = self.family.attention, self.family.ffn
        modules = [module_of(last, ffn)]
        if ffn.tap == "input" and not ffn.end.startswith(ffn.module + "."):
            modules.append(last.get_submodule(ffn.end))
        if attention.tap == "input":
            modules.append(last.get_submodule(attention.end))
        return modules

    def require_streams(self, record: Record) -> None:
        """Raises OtterError where the base was called without token ids."""
        missing = [
            n for n, i in self.insertions.items() if i.config.hidden and n not in record.computed
        ]
        if missing:
            raise OtterError(
                f"insertion {missing[0]!r} got no token ids, only inputs_embeds",
                hint="the inserted stream starts from token ids; pass input_ids",
            )

    def not_native(self, record: Record, pending: Sequence[Pending]) -> list[str]:
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

    def made_at_once(self, pending: Sequence[Pending], names: Collection[str]) -> MadeAtOnce:
        """What the pending layers of these streams take from the base."""
        made: dict[tuple[str, int], OfBase] = {}
        for name, one in self.insertions.items():
            if name in names:
                mine = self._of(name, pending)
                products = one.layered([(attention, ffn) for _, attention, ffn in mine])
                made |= {(name, e[0].index): p for e, p in zip(mine, products, strict=True)}
        return made

    def _of(self, name: str, pending: Sequence[Pending]) -> list[Pending]:
        layers = self.insertions[name].config.layers
        return [each for each in pending if each[0].index in layers]

    def _begin(self, record: Record, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        record.seen.clear()
        record.pending.clear()
        record.computed.clear()
        record.inserted_state.clear()
        record.rotations = Rotations()

    def _start(
        self, record: Record, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor
    ) -> None:
        tokens = inputs[0]
        waits = record.deferred or _on_processor(tokens, _FEW)
        record.lazy = self.may_wait and not record.grad and waits
        record.native = not record.grad and _on_processor(tokens, _MANY)
        for name, insertion in self.insertions.items():
            if insertion.config.hidden:
                record.computed[name] = insertion.start(tokens)

    def _place(
        self,
        offset: int,
        record: Record,
        module: nn.Module,
        inputs: tuple[Tensor, ...],
        named: dict[str, Any],
    ) -> None:
        positions = named["position_ids"] if "position_ids" in named else inputs[0]
        for name, z in record.computed.items():
            if (table := self.insertions[name].positions) is not None:
                record.computed[name] = z + table(positions + offset)

    def _finish(
        self, record: Record, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor
    ) -> None:
        record.settle()
        record.residual, record.base_state = inputs[0], output
        if (chosen := record.chosen) is not None:
            record.residual, record.base_state = chosen.of(inputs[0]), chosen.of(output)
        if not record.deferred:
            self.end(record)

    def end(self, record: Record) -> None:
        """v of every stream, whose layers run now if they have not."""
        compute(self._end, record)

    def _end(self, record: Record) -> None:
        for name, z in record.streams.items():
            if name in record.inserted_state:  # by native code, with its layers
                continue
            z = z if record.chosen is None else record.chosen.of(z)
            record.inserted_state[name] = self.insertions[name].norm(z, record.residual)


def _on_processor(tokens: Tensor, most: int) -> bool:
    """Few rows wait, and the streams run in one go after the base: on a CPU its weights have passed
    through the caches by then, so that each of their small operations runs several times as fast.
    What the taps hold meanwhile grows with the rows, so more of them go layer by layer, by native
    code as long as torch's products are no faster."""
    return tokens.device.type == "cpu" and tokens.numel() <= most


tap_attention_functions()
