"""Reading later: nothing in the base waits for the inserted stream, so forwards of a token each may
go by before the stream runs over all of them, as over one forward of so many tokens."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from otter_cli.core.errors import OtterError
from otter_cli.model.branch import AttentionCall, AttentionTap, BranchTap
from otter_cli.model.masks import MASKED_ATTENTIONS, windows_of
from otter_cli.model.record import Pending, Record

if TYPE_CHECKING:
    from otter_cli.model.otter import OtterForCausalLM


def may_defer(model: OtterForCausalLM) -> bool:
    """Not where a stream reads h itself, which the base changes; nor where attention takes no mask
    of one's own, or a window has moved on from what the first of the waiting tokens saw."""
    config = model.config
    masked = config._attn_implementation in MASKED_ATTENTIONS and not any(windows_of(config))
    return masked and model.taps.may_wait


class Deferred:
    """Forwards that the streams have not read. Until they have, the KV cache may grow by these, and
    nothing else may be done to it. Raises OtterError where `may_defer` is false."""

    def __init__(self, model: OtterForCausalLM) -> None:
        if not may_defer(model):
            raise OtterError(
                "this graft's signals can't be read later than its base runs",
                hint="read them at every token",
            )
        self.model = model
        self.decoder = model.base.get_submodule(model.shape.family.decoder)
        self.waiting: list[Record] = []

    def forward(self, tokens: Tensor, **arguments: Any) -> Tensor:
        """y [batch, 1, d] of `tokens` [batch, 1]; `arguments`, a cache among them, are the
        base's."""
        with self.model.taps.recording(grad=False, deferred=True) as record, torch.no_grad():
            y: Tensor = self.decoder(input_ids=tokens, **arguments).last_hidden_state
        for earlier in self.waiting[-1:]:
            _let_go(earlier)
        self.waiting.append(record)
        return y

    def read(self) -> tuple[Tensor, dict[str, Tensor]]:
        """y [batch, forwards, d] and v [batch, forwards, D] of all since the last reading."""
        records, self.waiting = self.waiting, []
        states = [record.base_state for record in records if record.base_state is not None]
        with torch.no_grad():
            whole = Record(self.model.taps, grad=False, base_state=torch.cat(states, 1))
            for name in records[0].computed:
                whole.computed[name] = torch.cat([record.computed[name] for record in records], 1)
            join, layers = _Joined(len(states[0])), zip(*(r.pending for r in records), strict=True)
            whole.pending = [join.layer(layer) for layer in layers]
            self.model.taps.end(whole)
            assert whole.base_state is not None
            return whole.base_state, whole.inserted_state


def _let_go(record: Record) -> None:
    """Of keys and values, which the next forward may have copied, only how many there were."""
    for _, attention, _ in record.pending:
        if (call := attention.call) is not None:
            call.key, call.value = (
                one.new_empty(*one.shape[:-1], 0) for one in (call.key, call.value)
            )


class _Joined:
    """What a layer was handed in several forwards, as in one. What layers share is made once."""

    def __init__(self, batch: int) -> None:
        self.batch, self._made = batch, dict[Hashable, Tensor]()

    def layer(self, forwards: Sequence[Pending]) -> Pending:
        hooks, *_ = forwards[0]
        attentions, ffns = [one for _, one, _ in forwards], [one for _, _, one in forwards]
        return hooks, self._attention(attentions), BranchTap(**self._read(ffns))

    def _attention(self, taps: Sequence[AttentionTap]) -> AttentionTap:
        named = dict(taps[-1].named)
        pairs = [tap.embeddings for tap in taps if tap.embeddings is not None]
        if pairs:
            named["position_embeddings"] = tuple(
                self._once(tuple(map(id, turns)), partial(torch.cat, turns, -2))
                for turns in zip(*pairs, strict=True)
            )
        calls = [tap.call for tap in taps if tap.call is not None]
        return AttentionTap(
            **self._read(taps), named=named, call=self._call(calls) if calls else None
        )

    def _call(self, calls: Sequence[AttentionCall]) -> AttentionCall:
        """The last one, which has all keys and values, and what each saw of them."""
        one, slots = calls[-1], [call.key.shape[-2] for call in calls]
        given = [call.mask for call in calls]
        mask = self._once(
            (*map(id, given), *slots), partial(_masks, given, slots, self.batch, one.key)
        )
        return AttentionCall(one.function, one.module, one.key, one.value, mask, one.arguments)

    def _read(self, taps: Sequence[BranchTap]) -> dict[str, Any]:
        return {
            "normed": self._tokens([tap.normed for tap in taps]),
            "residual": None,
            "part": self._tokens([tap.part for tap in taps]),
            "branch": self._tokens([tap.branch for tap in taps]),
        }

    def _tokens(self, each: Sequence[Tensor | None]) -> Any:
        """[batch, forwards, width], of tensors that a modelling file may have flattened."""
        there = [one.view(self.batch, 1, -1) for one in each if one is not None]
        return torch.cat(there, 1) if there else None

    def _once(self, key: Hashable, make: Callable[[], Tensor]) -> Tensor:
        """Keys are of tensors that their records keep alive."""
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]


def _masks(
    given: Sequence[Tensor | None], slots: Sequence[int], batch: int, like: Tensor
) -> Tensor:
    """What attention adds, [batch, 1, forwards, slots]: a token saw what was there by then, but for
    what its own mask [batch, 1, 1, slots] hides."""
    least = torch.finfo(like.dtype).min
    whole = like.new_full((batch, 1, len(given), slots[-1]), least)
    for number, (mask, there) in enumerate(zip(given, slots, strict=True)):
        row = whole[:, :, number : number + 1, :there]
        if mask is None:
            row.zero_()
        elif mask.dtype == torch.bool:
            row.zero_().masked_fill_(~mask[..., :there], least)
        else:
            row.copy_(mask[..., :there])
    return whole
