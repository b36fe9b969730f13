"""The insertion's own keys and values live in the base's cache object, in layers appended after the
base's."""

from __future__ import annotations

from torch import Tensor
from transformers.cache_utils import (
    Cache,
    CacheLayerMixin,
    DynamicLayer,
    StaticSlidingWindowLayer,
)

from otter_cli.core.errors import OtterError
from otter_cli.model.growing_cache import GrowingLayer


def own_layer(cache: Cache, at: int, *, depth: int, new_tokens: int) -> None:
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


def reserve(cache: Cache, at: int, *, depth: int, new: Tensor) -> tuple[GrowingLayer, int]:
    """`own_layer`, and how many slots of it there are with those of further tokens, as `new` is
    shaped: to be written by who asked."""
    own_layer(cache, at, depth=depth, new_tokens=new.shape[-2])
    layer = cache.layers[at]
    assert isinstance(layer, GrowingLayer)
    return layer, layer.reserve(new)


def _empty_like(layer: CacheLayerMixin) -> CacheLayerMixin:
    if type(layer) in (DynamicLayer, GrowingLayer):  # theirs, without a copy at every step
        return GrowingLayer()
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
