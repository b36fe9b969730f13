"""Running the stream later than the base.

The base never reads the stream. So several forwards of one token each can pass before the stream
runs over all of them, as over one forward of that many tokens. LazyStream keeps what was captured;
reading a state of LazyStates runs the stream."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from otter_cli.core.errors import OtterError
from otter_cli.model.activations import (
    AttentionActivations,
    AttentionCall,
    BranchActivations,
    LayerInput,
)
from otter_cli.model.forward_context import ForwardContext
from otter_cli.model.masks import MASKED_ATTENTIONS, attention_windows

if TYPE_CHECKING:
    from otter_cli.model.otter import OtterForCausalLM


# A pending forward holds x, a and m of every layer.
_MOST_PENDING = 64


def supports_lazy_stream(model: OtterForCausalLM) -> bool:
    """False where a stream reads h itself, which the base may change in place; where attention
    takes no mask of the caller; and where a sliding window may have dropped what the first pending
    token saw."""
    config = model.config
    masked = config._attn_implementation in MASKED_ATTENTIONS and not any(attention_windows(config))
    return masked and model.capture.can_run_late


class LazyStream:
    """Forwards whose streams have not run. Call `run_pending` before the KV cache is changed by
    anything but further forwards. Raises OtterError unless `supports_lazy_stream`."""

    def __init__(self, model: OtterForCausalLM) -> None:
        if not supports_lazy_stream(model):
            raise OtterError(
                "this graft's signals can't be read later than its base runs",
                hint="read them at every token",
            )
        self.model = model
        self.decoder = model.base.get_submodule(model.shape.family.decoder)
        self._pending: list[tuple[ForwardContext, LazyStates]] = []

    def forward(self, tokens: Tensor, **arguments: Any) -> tuple[Tensor, Mapping[str, Tensor]]:
        """y [batch, 1, d] of `tokens` [batch, 1], and v [batch, 1, D] of every insertion, for which
        the streams run when it is read. `arguments`, such as a cache, go to the base."""
        with self.model.capture.recording(False, run_on_request=True) as context, torch.no_grad():
            y: Tensor = self.decoder(input_ids=tokens, **arguments).last_hidden_state
        if self._pending:
            _release_keys_and_values(self._pending[-1][0])
        states = LazyStates(self)
        self._pending.append((context, states))
        if len(self._pending) == _MOST_PENDING:
            self.run_pending()
        return y, states

    def run_pending(self) -> None:
        """Runs the streams over all pending forwards, as over one."""
        pending, self._pending = self._pending, []
        if not pending:
            return
        with torch.no_grad():
            contexts = [context for context, _ in pending]
            whole = contexts[0] if len(contexts) == 1 else self._merged(contexts)
            self.model.capture.finish_streams(whole)
        for index, (_, states) in enumerate(pending):
            token = slice(index, index + 1)
            states.states = {name: v[:, token] for name, v in whole.inserted_state.items()}

    def _merged(self, contexts: Sequence[ForwardContext]) -> ForwardContext:
        first = contexts[0]
        whole = ForwardContext(
            self.model.capture,
            grad=False,
            run_after_base=first.run_after_base,
            use_native=first.use_native,
        )
        for name in first.z:
            whole.z[name] = torch.cat([context.z[name] for context in contexts], 1)
        assert first.base_state is not None
        merged = _MergedForwards(len(first.base_state))
        layers = zip(*(context.pending for context in contexts), strict=True)
        whole.pending = [merged.layer(layer) for layer in layers]
        return whole


class LazyStates(Mapping[str, Tensor]):
    """States v by insertion, computed when one is read."""

    def __init__(self, stream: LazyStream) -> None:
        self._stream = stream
        self.states: dict[str, Tensor] | None = None

    def __getitem__(self, name: str) -> Tensor:
        return self._computed()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._computed())

    def __len__(self) -> int:
        return len(self._computed())

    def _computed(self) -> dict[str, Tensor]:
        if self.states is None:
            self._stream.run_pending()
        assert self.states is not None
        return self.states


def _release_keys_and_values(context: ForwardContext) -> None:
    """Replaces keys and values, which the next forward may have copied, by empty ones of the same
    number of slots."""
    for layer in context.pending:
        if (call := layer.attention.call) is not None:
            call.release_keys_and_values()


class _MergedForwards:
    """Merges what a layer got in several forwards. Tensors that layers share are merged once."""

    def __init__(self, batch: int) -> None:
        self.batch, self._shared = batch, dict[Hashable, Tensor]()

    def layer(self, forwards: Sequence[LayerInput]) -> LayerInput:
        ffn = BranchActivations(**self._branch([each.ffn for each in forwards]))
        attention = self._attention([each.attention for each in forwards])
        return LayerInput(forwards[0].site, attention, ffn)

    def _attention(self, captured: Sequence[AttentionActivations]) -> AttentionActivations:
        kwargs = dict(captured[-1].kwargs)
        pairs = [each.embeddings for each in captured if each.embeddings is not None]
        if pairs:
            kwargs["position_embeddings"] = tuple(
                self._merge_once(tuple(map(id, turns)), partial(torch.cat, turns, -2))
                for turns in zip(*pairs, strict=True)
            )
        calls = [each.call for each in captured if each.call is not None]
        return AttentionActivations(
            **self._branch(captured), kwargs=kwargs, call=self._call(calls) if calls else None
        )

    def _call(self, calls: Sequence[AttentionCall]) -> AttentionCall:
        """The last call, which has all keys and values, with a mask of what each token saw."""
        last, slots = calls[-1], [call.key.shape[-2] for call in calls]
        masks = [call.mask for call in calls]
        mask = self._merge_once(
            (*map(id, masks), *slots), partial(_merged_mask, masks, slots, self.batch, last.key)
        )
        return AttentionCall(last.function, last.module, last.key, last.value, mask, last.arguments)

    def _branch(self, captured: Sequence[BranchActivations]) -> dict[str, Any]:
        return {
            "normed": self._tokens([each.normed for each in captured]),
            "residual": None,
            "base_out": self._tokens([each.base_out for each in captured]),
            "branch_out": self._tokens([each.branch_out for each in captured]),
        }

    def _tokens(self, tensors: Sequence[Tensor | None]) -> Any:
        """[batch, forwards, width], of tensors that a modelling file may have flattened."""
        present = [tensor.view(self.batch, 1, -1) for tensor in tensors if tensor is not None]
        return torch.cat(present, 1) if present else None

    def _merge_once(self, key: Hashable, merge: Callable[[], Tensor]) -> Tensor:
        """`key` holds ids of tensors, which their contexts keep alive."""
        if key not in self._shared:
            self._shared[key] = merge()
        return self._shared[key]


def _merged_mask(
    masks: Sequence[Tensor | None], slots: Sequence[int], batch: int, like: Tensor
) -> Tensor:
    """An additive mask [batch, 1, forwards, slots]. Each token sees the slots that its own forward
    had, except those that its own mask [batch, 1, 1, slots] hides."""
    lowest = torch.finfo(like.dtype).min
    whole = like.new_full((batch, 1, len(masks), slots[-1]), lowest)
    for index, (mask, count) in enumerate(zip(masks, slots, strict=True)):
        row = whole[:, :, index : index + 1, :count]
        if mask is None:
            row.zero_()
        elif mask.dtype == torch.bool:
            row.zero_().masked_fill_(~mask[..., :count], lowest)
        else:
            row.copy_(mask[..., :count])
    return whole
