"""Which insertions and which calls native code supports.

Single precision, norm by the stream's own rms, a gated FFN with SiLU, sdpa attention. Everything
else runs by torch's operations."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook
from torch.utils._python_dispatch import _get_current_dispatch_mode
from torch.utils.hooks import RemovableHandle
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from otter_cli.families.shape import BaseShape
from otter_cli.model.activations import AttentionCall
from otter_cli.model.cache import GrowingCacheLayer
from otter_cli.model.forward_context import CapturedLayer, PendingLayer
from otter_cli.model.fused_linear import DualInputLinear
from otter_cli.model.rotary import rotates_halves

if TYPE_CHECKING:
    from otter_cli.model.insertion import Insertion


# Arguments of an attention call that say nothing more, or what a mask has said already.
_KNOWN_ARGUMENTS = frozenset(
    ("scaling", "dropout", "position_ids", "output_attentions", "use_cache")
)
_GROWING_LAYERS: tuple[type, ...] = (GrowingCacheLayer, DynamicLayer)


class NativeSupport:
    """Whether an insertion is of the form that stream.cpp computes, and a call of such a kind."""

    def __init__(self, insertion: Insertion, shape: BaseShape) -> None:
        self.config, self.head_dim, family = insertion.config, shape.head_dim, shape.family
        self.form = (
            self.config.norm == "own"
            and not (shape.parallel or family.attention.post_norm or family.ffn.post_norm)
            and not (family.ffn.ungated or family.attention.sinks)
            and not (family.attention.joint_norm and family.attention.query_norm)
            and shape.activation in ("silu", "swish")
        )
        self._turns: dict[int, bool] = {}
        self._unhooked = -1  # how many hooks torch had made when there were none here
        self._hooks = [
            hooks
            for module in _hookable_modules(insertion)
            for hooks in (module._forward_pre_hooks, module._forward_hooks)
        ]

    def __call__(self, z: Tensor, pending: Sequence[PendingLayer]) -> bool:
        # Who follows torch's operations, or hooks on the stream's modules, is to see them.
        if not self.form or not pending:
            return False
        if _get_current_dispatch_mode() is not None or self._hooked():
            return False
        if z.dtype != torch.float32 or not z.is_contiguous():
            return False
        return not self.config.heads or (
            _same_attention_calls([attention.call for _, attention, _ in pending], z.shape[1])
            and all(self._turned(hooks) for hooks, *_ in pending)
            and self._embedded(pending)
            and (
                _base_keys_readable(pending) if self.config.kv == "base" else _cache_grows(pending)
            )
        )

    def _hooked(self) -> bool:
        """Asks the modules only where torch has made any hook, of whatever module, since."""
        made = RemovableHandle.next_id
        if made != self._unhooked:
            if _has_any_global_hook() or any(self._hooks):
                return True
            self._unhooked = made
        return False

    def _turned(self, hooks: CapturedLayer) -> bool:
        """Whether the layer's rotation, if there is one, is the usual one of whole heads."""
        known = self._turns.get(hooks.index)
        if known is None:
            apply, whole = hooks.apply_rotary, hooks.rotary_width == self.head_dim
            known = self._turns[hooks.index] = apply is None or (whole and rotates_halves(apply))
        return known

    def _embedded(self, pending: Sequence[PendingLayer]) -> bool:
        """Whether all layers that rotate do so by the same cosines and sines."""
        given = [attention.embeddings for hooks, attention, _ in pending if hooks.apply_rotary]
        if not given or given[0] is None:
            return not given
        cos, sin = given[0]
        same = all(one is not None and one[0] is cos and one[1] is sin for one in given)
        return same and cos.shape[-1] == self.head_dim


def _hookable_modules(insertion: Insertion) -> Iterator[nn.Module]:
    """What torch's operations go through as modules: products are not, whose weights are packed."""
    for layer in insertion.layered.layers:
        for module in layer.modules():
            if not isinstance(module, (DualInputLinear, nn.Linear)):
                yield module
    yield insertion.norm


def _same_attention_calls(calls: Sequence[AttentionCall | None], tokens: int) -> bool:
    """Whether all layers attend by the usual function, to the same slots."""
    first = calls[0]
    if first is None or not _mask_supported(first.mask, tokens, first.key.shape[-2]):
        return False
    return all(
        call is not None
        and call.function is sdpa_attention_forward
        and call.mask is first.mask
        and call.key.shape == first.key.shape
        and call.arguments.get("scaling") == first.arguments.get("scaling")
        and _only_known_arguments(call.arguments)
        for call in calls
    )


def _mask_supported(mask: Tensor | None, tokens: int, slots: int) -> bool:
    """Whether a mask is one for all heads; or there is none, and none is needed."""
    if mask is None:
        return tokens in (1, slots)
    return mask.ndim == 4 and mask.shape[1] == 1 and mask.shape[-1] >= slots


def _only_known_arguments(arguments: Mapping[str, Any]) -> bool:
    return _KNOWN_ARGUMENTS.issuperset(arguments) or all(
        value is None for name, value in arguments.items() if name not in _KNOWN_ARGUMENTS
    )


def _base_keys_readable(pending: Sequence[PendingLayer]) -> bool:
    return all(
        one.dtype == torch.float32 and one.stride(-1) == 1
        for _, attention, _ in pending
        if attention.call is not None
        for one in (attention.call.key, attention.call.value)
    )


def _cache_grows(pending: Sequence[PendingLayer]) -> bool:
    """Whether new keys and values go behind those that are there."""
    cache = pending[0][1].cache
    return cache is None or (
        isinstance(cache, DynamicCache)
        and all(type(cache.layers[hooks.index]) in _GROWING_LAYERS for hooks, *_ in pending)
    )
