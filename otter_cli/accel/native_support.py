"""Which calls native code supports, and why not others, in words for `required` native code.

stream_path.py says which insertions it supports: `norm: own`, a gated FFN with SiLU, sdpa
attention. PackedBackend runs all else."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook
from torch.utils.hooks import RemovableHandle
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from otter_cli.accel.native_call import DTYPE_NUMBERS
from otter_cli.accel.packed import PackedBackend
from otter_cli.accel.stream_path import insertion_refusal, place_refusal
from otter_cli.model.activations import AttentionCall, LayerInput, LayerSite
from otter_cli.model.cache import GrowingCacheLayer
from otter_cli.model.rotary import rotates_halves
from otter_cli.model.stream import DualInputLinear

# Arguments of an attention call that native code reads, or that change nothing beside the mask.
_KNOWN_ARGUMENTS = frozenset(
    (
        "scaling",
        "dropout",
        "position_ids",
        "output_attentions",
        "output_router_logits",
        "use_cache",
    )
)
_GROWING_LAYERS: tuple[type, ...] = (GrowingCacheLayer, DynamicLayer)


class NativeSupport:
    """Whether stream.cpp computes an insertion of this form, and a call of this kind."""

    def __init__(self, packed: PackedBackend) -> None:
        insertion, shape, *_ = packed.made_of
        self.config, self.head_dim = insertion.config, shape.head_dim
        self._of_insertion = insertion_refusal(self.config, shape)
        self._rotations: dict[int, bool] = {}
        self._last_hook_id = -1  # of torch, when the stream's modules had no hook
        self._hooks = [
            hooks
            for module in _hookable_modules(packed)
            for hooks in (module._forward_pre_hooks, module._forward_hooks)
        ]

    def refusal(self, z: Tensor, layers: Sequence[LayerInput]) -> str:
        """Why it does not; "" where it does."""
        if self._of_insertion:
            return self._of_insertion
        if self._hooked():  # hooks on the stream's modules see torch's operations only
            return "a module of the insertion has a hook"
        if z.device.type != "cpu" or z.dtype not in DTYPE_NUMBERS:
            return place_refusal(str(z.dtype).removeprefix("torch."), z.device.type)
        if not z.is_contiguous():
            return "the stream's state is not contiguous"
        return self._heads_refusal(z, layers) if self.config.heads else ""

    def _heads_refusal(self, z: Tensor, layers: Sequence[LayerInput]) -> str:
        calls = [layer.attention.call for layer in layers]
        if not _same_attention_calls(calls, z.shape[1]):
            return "the base's attention is not sdpa with the same mask in all layers"
        rotations = all(self._rotation_supported(layer.site) for layer in layers)
        if not rotations or not self._same_embeddings(layers):
            return "the base's rotary embedding is not the usual one of whole heads"
        if self.config.kv == "base":
            readable = _base_keys_readable(layers, z.dtype)
            return "" if readable else f"the base's keys and values are not {z.dtype}"
        return "" if _cache_grows(layers) else "the base's KV cache is no DynamicCache"

    def _hooked(self) -> bool:
        """Whether a module of the stream has a hook. Searches only if torch has registered a hook
        since the last search."""
        hook_id = RemovableHandle.next_id
        if hook_id != self._last_hook_id:
            if _has_any_global_hook() or any(self._hooks):
                return True
            self._last_hook_id = hook_id
        return False

    def _rotation_supported(self, site: LayerSite) -> bool:
        """Whether the layer's rotation, if there is one, is the usual one of whole heads."""
        known = self._rotations.get(site.index)
        if known is None:
            apply, whole = site.apply_rotary, site.rotary_width == self.head_dim
            known = apply is None or (whole and rotates_halves(apply))
            self._rotations[site.index] = known
        return known

    def _same_embeddings(self, layers: Sequence[LayerInput]) -> bool:
        """Whether all layers that rotate have the same cosines and sines."""
        pairs = [layer.attention.embeddings for layer in layers if layer.site.apply_rotary]
        if not pairs or pairs[0] is None:
            return not pairs
        cos, sin = pairs[0]
        same = all(pair is not None and pair[0] is cos and pair[1] is sin for pair in pairs)
        return same and cos.shape[-1] == self.head_dim


def _hookable_modules(packed: PackedBackend) -> Iterator[nn.Module]:
    """The modules that PackedBackend calls. It does not call linears, whose weights are packed."""
    for layer in packed.inserted.values():
        for module in layer.modules():
            if not isinstance(module, (DualInputLinear, nn.Linear)):
                yield module
    yield packed.insertion.norm


def _same_attention_calls(calls: Sequence[AttentionCall | None], tokens: int) -> bool:
    """Whether all layers call sdpa attention with the same mask, slots and scale."""
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
    """Whether all heads have the same mask, or none is needed."""
    if mask is None:
        return tokens in (1, slots)
    return mask.ndim == 4 and mask.shape[1] == 1 and mask.shape[-1] >= slots


def _only_known_arguments(arguments: Mapping[str, Any]) -> bool:
    return _KNOWN_ARGUMENTS.issuperset(arguments) or all(
        value is None for name, value in arguments.items() if name not in _KNOWN_ARGUMENTS
    )


def _base_keys_readable(layers: Sequence[LayerInput], dtype: torch.dtype) -> bool:
    return all(
        tensor.dtype == dtype and tensor.stride(-1) == 1
        for layer in layers
        if (call := layer.attention.call) is not None
        for tensor in (call.key, call.value)
    )


def _cache_grows(layers: Sequence[LayerInput]) -> bool:
    """Whether new keys and values are appended to those of the cache."""
    cache = layers[0].attention.cache
    return cache is None or (
        isinstance(cache, DynamicCache)
        and all(type(cache.layers[layer.site.index]) in _GROWING_LAYERS for layer in layers)
    )
