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
    """As DynamicLayer, but `keys` and `values` [rows, heads, slots, head_dim] are the first slots
    of `key_room` and `value_room`. Whoever assigns others (selects rows, say) may."""

    key_room: Any
    value_room: Any
    _slots = (0, 0)
    _placed: tuple[Any, Any, tuple[int, ...]] = (None, None, ())

    @property
    def keys(self) -> Tensor | None:
        return None if self.key_room is None else self.key_room[:, :, : self._slots[0]]

    @keys.setter
    def keys(self, entries: Tensor | None) -> None:
        self.key_room, count = entries, 0 if entries is None else entries.shape[-2]
        # One after the other is assigned: what is read of the other meanwhile is as before.
        self._slots = (count, self._slots[1])

    @property
    def values(self) -> Tensor | None:
        return None if self.value_room is None else self.value_room[:, :, : self._slots[1]]

    @values.setter
    def values(self, entries: Tensor | None) -> None:
        self.value_room, count = entries, 0 if entries is None else entries.shape[-2]
        self._slots = (self._slots[0], count)

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.dtype, self.device = key_states.dtype, key_states.device
        self.keys, self.values = key_states[:, :, :0], value_states[:, :, :0]
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        start, stop = self._slots[0], self.reserve(key_states)
        keys, values = self.key_room[:, :, :stop], self.value_room[:, :, :stop]
        keys[:, :, start:], values[:, :, start:] = key_states, value_states
        return keys, values

    def reserve(self, new: Tensor) -> int:
        """How many slots there are with those of `new`, which are still to be written."""
        if not self.is_initialized:
            self.lazy_initialization(new, new)
        start = self._slots[0]
        stop: int = start + new.shape[2]
        if stop > self.key_room.shape[2]:
            self.key_room = _enlarged(self.key_room, start, stop)
        if stop > self.value_room.shape[2]:
            self.value_room = _enlarged(self.value_room, start, stop)
        self._slots = (stop, stop)
        return stop

    @property
    def places(self) -> tuple[int, ...]:
        """`places` of `key_room` and `value_room`."""
        key, value, found = self._placed
        if key is not self.key_room or value is not self.value_room:
            found = cache_addresses(self.key_room, self.value_room)
            self._placed = self.key_room, self.value_room, found
        return found

    def truncate(self, slots: int) -> None:
        self._slots = (slots, slots)

    def get_seq_length(self) -> int:
        return self._slots[0]


def cache_addresses(key: Tensor, value: Tensor) -> tuple[int, ...]:
    """Addresses of keys and values, then the strides of each by batch, head and slot."""
    return (key.data_ptr(), value.data_ptr(), *key.stride()[:3], *value.stride()[:3])


def _enlarged(room: Tensor, start: int, stop: int) -> Tensor:
    """Room for `stop` slots and more; its first `start` are those of `room`."""
    rows, heads, _, width = room.shape
    larger = room.new_empty(
        rows, heads, stop + max(_LEAST_SPARE_SLOTS, stop // _SPARE_SHARE), width
    )
    larger[:, :, :start] = room[:, :, :start]
    return larger


def ensure_inserted_layer(cache: Cache, at: int, *, depth: int, new_tokens: int) -> None:
    """Makes sure that `cache.layers[at]` exists, of the same type as the base's layer `at` modulo
    its `depth`, and as long.

    Raises OtterError where the base cached tokens that the insertion never saw.
    """
    like = at % depth
    while len(cache.layers) <= at:
        # Layers between are another insertion's, whose windows are those of their own layers.
        between = len(cache.layers) % depth
        cache.layers.append(_empty_like(cache.layers[min(between, len(cache.layers) - 1)]))
    base, own = cache.layers[like].get_seq_length(), cache.layers[at].get_seq_length() + new_tokens
    if int(base) != int(own):
        raise OtterError(
            f"the KV cache holds {int(base)} tokens of the base and {int(own)} of the insertion",
            hint="prefill with the insertion on, or graft with --kv base, which needs no own cache",
        )


def reserve_inserted_slots(
    cache: Cache, at: int, *, depth: int, new: Tensor
) -> tuple[GrowingCacheLayer, int]:
    """`ensure_inserted_layer`, then reserve slots for tokens shaped as `new`, which the caller
    writes. Returns the cache layer and its number of slots, the new ones included."""
    ensure_inserted_layer(cache, at, depth=depth, new_tokens=new.shape[-2])
    layer = cache.layers[at]
    assert isinstance(layer, GrowingCacheLayer)
    return layer, layer.reserve(new)


def _empty_like(layer: CacheLayerMixin) -> CacheLayerMixin:
    if type(layer) in (DynamicLayer, GrowingCacheLayer):  # theirs, without a copy at every step
        return GrowingCacheLayer()
    if isinstance(layer, StaticSlidingWindowLayer):
        # It remembers the smaller of window and length alone.
        return StaticSlidingWindowLayer(layer.max_cache_len, layer.max_cache_len)
    arguments = {
        name: getattr(layer, name)
        for name in ("sliding_window", "max_cache_len")
        if hasattr(layer, name)
    }
    own = type(layer)(**arguments) if arguments else DynamicLayer()
    if getattr(layer, "record_past", False):
        # Assisted decoding takes tokens back, which a window must know beforehand.
        own.activate_past_recording()
    return own
