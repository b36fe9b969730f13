"""A layer of the KV cache with room behind what it holds: a step writes its own slots and copies
nothing that is there already; what it takes back is a number."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers.cache_utils import DynamicLayer

_LEAST, _SHARE = 16, 8


class GrowingLayer(DynamicLayer):
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
            self.key_room = _more(self.key_room, start, stop)
        if stop > self.value_room.shape[2]:
            self.value_room = _more(self.value_room, start, stop)
        self._slots = (stop, stop)
        return stop

    @property
    def places(self) -> tuple[int, ...]:
        """`places` of `key_room` and `value_room`."""
        key, value, found = self._placed
        if key is not self.key_room or value is not self.value_room:
            found = places(self.key_room, self.value_room)
            self._placed = self.key_room, self.value_room, found
        return found

    def truncate(self, slots: int) -> None:
        self._slots = (slots, slots)

    def get_seq_length(self) -> int:
        return self._slots[0]


def places(key: Tensor, value: Tensor) -> tuple[int, ...]:
    """Addresses of keys and values, then the strides of each by batch, head and slot."""
    return (key.data_ptr(), value.data_ptr(), *key.stride()[:3], *value.stride()[:3])


def _more(room: Tensor, start: int, stop: int) -> Tensor:
    """Room for `stop` slots and more; its first `start` are those of `room`."""
    rows, heads, _, width = room.shape
    larger = room.new_empty(rows, heads, stop + max(_LEAST, stop // _SHARE), width)
    larger[:, :, :start] = room[:, :, :start]
    return larger
