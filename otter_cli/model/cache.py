"""The insertion's own keys and values, in the base's KV cache object.

They lie in layers appended after the base's layers, one set for each insertion. GrowingCacheLayer
keeps spare slots behind its content, so that a step writes its own slots and copies nothing."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicLayer, StaticSlidingWindowLayer

from otter_cli.core.errors import OtterError

_LEAST_SPARE_SLOTS, _SPARE_SHARE = 16, 8


class GrowingCacheLayer(DynamicLayer):
    """A DynamicLayer whose `keys` and `values` [rows, heads, slots, head_dim] are the first slots
    of `key_buffer` and `value_buffer`. Others may be assigned, such as a selection of rows."""

    key_buffer: Any
    value_buffer: Any
    _lengths = (0, 0)

    @property
    def keys(self) -> Tensor | None:
        return None if self.key_buffer is None else self.key_buffer[:, :, : self._lengths[0]]

    @keys.setter
    def keys(self, entries: Tensor | None) -> None:
        self.key_buffer, count = entries, 0 if entries is None else entries.shape[-2]
        # Keys and values are assigned one after the other: their lengths differ in between.
        self._lengths = (count, self._lengths[1])

    @property
    def values(self) -> Tensor | None:
        return None if self.value_buffer is None else self.value_buffer[:, :, : self._lengths[1]]

    @values.setter
    def values(self, entries: Tensor | None) -> None:
        self.value_buffer, count = entries, 0 if entries is None else entries.shape[-2]
        self._lengths = (self._lengths[0], count)

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.dtype, self.device = key_states.dtype, key_states.device
        self.keys, self.values = key_states[:, :, :0], value_states[:, :, :0]
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        start, stop = self._lengths[0], self.reserve(key_states)
        keys, values = self.key_buffer[:, :, :stop], self.value_buffer[:, :, :stop]
        keys[:, :, start:], values[:, :, start:] = key_states, value_states
        return keys, values

    def reserve(self, new: Tensor) -> int:
        """Makes room for tokens shaped as `new`, which the caller writes. Returns the number of
        slots, the new ones included."""
        if not self.is_initialized:
            self.lazy_initialization(new, new)
        start = self._lengths[0]
        stop: int = start + new.shape[2]
        if stop > self.key_buffer.shape[2]:
            self.key_buffer = _enlarged(self.key_buffer, start, stop)
        if stop > self.value_buffer.shape[2]:
            self.value_buffer = _enlarged(self.value_buffer, start, stop)
        self._lengths = (stop, stop)
        return stop

    def truncate(self, slots: int) -> None:
        self._lengths = (slots, slots)

    def get_seq_length(self) -> int:
        return self._lengths[0]


def _enlarged(buffer: Tensor, start: int, stop: int) -> Tensor:
    """A buffer of `stop` slots and more, which begins with the first `start` slots of `buffer`."""
    rows, heads, _, width = buffer.shape
    slots = stop + max(_LEAST_SPARE_SLOTS, stop // _SPARE_SHARE)
    larger = buffer.new_empty(rows, heads, slots, width)
    larger[:, :, :start] = buffer[:, :, :start]
    return larger


def ensure_inserted_layer(cache: Cache, at: int, *, depth: int, new_tokens: int) -> CacheLayerMixin:
    """The cache's layer `at`, appended where it is missing, of the same type as the base's layer
    `at` modulo its `depth`. Raises OtterError unless it is as long with `new_tokens` as the base's:
    the base cached tokens that the insertion never saw."""
    while len(cache.layers) <= at:
        # Layers before it are another insertion's, each like the base's layer of the same index.
        between = len(cache.layers) % depth
        cache.layers.append(_empty_like(cache.layers[min(between, len(cache.layers) - 1)]))
    layer = cache.layers[at]
    base = int(cache.layers[at % depth].get_seq_length())
    own = int(layer.get_seq_length()) + new_tokens
    if base != own:
        raise OtterError(
            f"the KV cache holds {base} tokens of the base and {own} of the insertion",
            hint="prefill with the insertion on, or graft with --kv base, which needs no own cache",
        )
    return layer


def update_inserted_layer(
    cache: Cache, key: Tensor, value: Tensor, *, at: int, depth: int
) -> tuple[Tensor, Tensor]:
    """Stores keys and values [batch, heads, tokens, head_dim] in layer `at`, and returns all."""
    ensure_inserted_layer(cache, at, depth=depth, new_tokens=key.shape[-2])
    return cache.update(key, value, at)


def _empty_like(layer: CacheLayerMixin) -> CacheLayerMixin:
    if type(layer) in (DynamicLayer, GrowingCacheLayer):  # DynamicLayer copies at every step
        return GrowingCacheLayer()
    if isinstance(layer, StaticSlidingWindowLayer):
        # It stores only the smaller of window and length.
        return StaticSlidingWindowLayer(layer.max_cache_len, layer.max_cache_len)
    arguments = {
        name: getattr(layer, name)
        for name in ("sliding_window", "max_cache_len")
        if hasattr(layer, name)
    }
    own = type(layer)(**arguments) if arguments else DynamicLayer()
    if getattr(layer, "record_past", False):
        # Assisted decoding removes tokens again. A window must know that beforehand.
        own.activate_past_recording()
    return own
