"""Running the stream later than the base.

The base never reads the stream. So several forwards of one token each can pass before the stream
runs over all of them, as over one forward of that many tokens. LazyStream keeps what the hooks
captured; LazyStates runs the stream when somebody reads a state."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from otter_cli.core.errors import OtterError
from otter_cli.model.activations import AttentionActivations, AttentionCall, BranchActivations
from otter_cli.model.forward_context import ForwardContext, PendingLayer
from otter_cli.model.masks import MASKED_ATTENTIONS, attention_windows

if TYPE_CHECKING:
    from otter_cli.model.otter import OtterForCausalLM


# What waits holds a few numbers a layer for each unit of the base's width.
_MOST_PENDING = 64


def supports_lazy_stream(model: OtterForCausalLM) -> bool:
    """Not where a stream reads h itself, which the base changes; nor where attention takes no mask
    of one's own, or a window has moved on from what the first of the waiting tokens saw."""
    config = model.config
    masked = config._attn_implementation in MASKED_ATTENTIONS and not any(attention_windows(config))
    return masked and model.taps.may_wait


class LazyStream:
    """Forwards whose streams have not run. Before the KV cache is changed by anything but further
    ones, `catch_up`. Raises OtterError where `supports_lazy_stream` is false."""

    def __init__(self, model: OtterForCausalLM) -> None:
        if not supports_lazy_stream(model):
            raise OtterError(
                "this graft's signals can't be read later than its base runs",
                hint="read them at every token",
            )
        self.model = model
        self.decoder = model.base.get_submodule(model.shape.family.decoder)
        self._waiting: list[tuple[ForwardContext, LazyStates]] = []

    def forward(self, tokens: Tensor, **arguments: Any) -> tuple[Tensor, Mapping[str, Tensor]]:
        """y [batch, 1, d] of `tokens` [batch, 1], and v [batch, 1, D] of every insertion, for which
        the streams run when it is looked into. `arguments`, a cache among them, are the base's."""
        with self.model.taps.recording(grad=False, deferred=True) as record, torch.no_grad():
            y: Tensor = self.decoder(input_ids=tokens, **arguments).last_hidden_state
        for earlier, _ in self._waiting[-1:]:
            _release_keys_and_values(earlier)
        later = LazyStates(self)
        self._waiting.append((record, later))
        if len(self._waiting) == _MOST_PENDING:
            self.catch_up()
        return y, later

    def catch_up(self) -> None:
        """Runs the streams over all forwards that wait, as over one; over a single one as ever."""
        waiting, self._waiting = self._waiting, []
        if not waiting:
            return
        with torch.no_grad():
            record = (
                waiting[0][0] if len(waiting) == 1 else self._joined([one for one, _ in waiting])
            )
            self.model.taps.end(record)
        for number, (_, later) in enumerate(waiting):
            here = slice(number, number + 1)
            later.made = {name: v[:, here] for name, v in record.inserted_state.items()}

    def _joined(self, records: Sequence[ForwardContext]) -> ForwardContext:
        first = records[0]
        whole = ForwardContext(self.model.taps, grad=False, lazy=first.lazy, native=first.native)
        for name in first.computed:
            whole.computed[name] = torch.cat([record.computed[name] for record in records], 1)
        assert first.base_state is not None
        join = _MergedForwards(len(first.base_state))
        layers = zip(*(record.pending for record in records), strict=True)
        whole.pending = [join.layer(layer) for layer in layers]
        return whole


class LazyStates(Mapping[str, Tensor]):
    """States by insertion, made when somebody looks."""

    def __init__(self, deferred: LazyStream) -> None:
        self._deferred = deferred
        self.made: dict[str, Tensor] | None = None

    def __getitem__(self, name: str) -> Tensor:
        return self._states()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._states())

    def __len__(self) -> int:
        return len(self._states())

    def _states(self) -> dict[str, Tensor]:
        if self.made is None:
            self._deferred.catch_up()
        assert self.made is not None
        return self.made


def _release_keys_and_values(record: ForwardContext) -> None:
    """Of keys and values, which the next forward may have copied, only how many there were."""
    for _, attention, _ in record.pending:
        if (call := attention.call) is not None:
            call.key, call.value = (
                one.new_empty(*one.shape[:-1], 0) for one in (call.key, call.value)
            )


class _MergedForwards:
    """What a layer was handed in several forwards, as in one. What layers share is made once."""

    def __init__(self, batch: int) -> None:
        self.batch, self._made = batch, dict[Hashable, Tensor]()

    def layer(self, forwards: Sequence[PendingLayer]) -> PendingLayer:
        hooks, *_ = forwards[0]
        attentions, ffns = [one for _, one, _ in forwards], [one for _, _, one in forwards]
        return hooks, self._attention(attentions), BranchActivations(**self._read(ffns))

    def _attention(self, taps: Sequence[AttentionActivations]) -> AttentionActivations:
        named = dict(taps[-1].named)
        pairs = [tap.embeddings for tap in taps if tap.embeddings is not None]
        if pairs:
            named["position_embeddings"] = tuple(
                self._once(tuple(map(id, turns)), partial(torch.cat, turns, -2))
                for turns in zip(*pairs, strict=True)
            )
        calls = [tap.call for tap in taps if tap.call is not None]
        return AttentionActivations(
            **self._read(taps), named=named, call=self._call(calls) if calls else None
        )

    def _call(self, calls: Sequence[AttentionCall]) -> AttentionCall:
        """The last one, which has all keys and values, and what each saw of them."""
        one, slots = calls[-1], [call.key.shape[-2] for call in calls]
        given = [call.mask for call in calls]
        mask = self._once(
            (*map(id, given), *slots), partial(_merged_mask, given, slots, self.batch, one.key)
        )
        return AttentionCall(one.function, one.module, one.key, one.value, mask, one.arguments)

    def _read(self, taps: Sequence[BranchActivations]) -> dict[str, Any]:
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


def _merged_mask(
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
