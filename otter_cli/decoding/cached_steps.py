"""Steps over one KV cache: of one token, of k candidates that share the prefix, of a drafted chain.

Rows of a batch are padded on the left and may keep different numbers of tokens of a step. A slot
of the cache that a row does not keep is masked out for it; slots that no row keeps are cropped.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from otter_cli.core.errors import OtterError


@dataclass
class State:
    """Final states of positions: the base's [rows, n, d], the insertions' [rows, n, D]."""

    base: Tensor
    inserted: dict[str, Tensor]

    def at(self, index: Tensor) -> State:
        """One position a row, `index` [rows]: states [rows, 1, ...]."""
        rows = torch.arange(len(index), device=index.device)
        inserted = {name: states[rows, index, None] for name, states in self.inserted.items()}
        return State(self.base[rows, index, None], inserted)

    def last(self) -> State:
        return State(self.base[:, -1:], {name: v[:, -1:] for name, v in self.inserted.items()})


class Session(ABC):
    """The cache and its bookkeeping, for any decoder."""

    def __init__(self, cache: DynamicCache, model: PreTrainedModel) -> None:
        self.cache, self.device = cache, model.device
        self.attention: str = model.config._attn_implementation
        self.valid = torch.zeros(0, 0, dtype=torch.bool)  # what a row sees, [rows, slots]
        self.positions = torch.zeros(0, dtype=torch.long)  # tokens kept so far, [rows]
        self.passes = self.fed = 0

    @abstractmethod
    def run(self, tokens: Tensor, mask: Tensor, positions: Tensor) -> State:
        """One pass over the cache; the states of `tokens` [rows, n]."""

    @property
    def slots(self) -> int:
        return self.valid.shape[1]

    def prefill(self, prompts: list[list[int]]) -> State:
        """Feeds the prompts; the states of their last tokens, [rows, 1, ...]."""
        width = max(map(len, prompts))
        padded = [[0] * (width - len(prompt)) + prompt for prompt in prompts]
        lengths = torch.tensor([len(prompt) for prompt in prompts], device=self.device)
        self.valid = torch.arange(width, device=self.device) >= width - lengths[:, None]
        self.positions = lengths
        positions = (self.valid.long().cumsum(-1) - 1).clamp(min=0)
        tokens = torch.tensor(padded, device=self.device)
        return self._forward(tokens, self.valid.long(), positions).last()

    def step(self, tokens: Tensor) -> State:
        """One token a row, [rows]; its states, [rows, 1, ...]."""
        state = self.extend(tokens[:, None])
        self.keep(torch.ones_like(tokens), of=1)
        return state

    def extend(self, chain: Tensor) -> State:
        """n tokens a row, [rows, n], each seeing those before it; `keep` must follow."""
        if chain.shape[1] > 1:
            self._refuse_windows()
        steps = torch.arange(chain.shape[1], device=self.device)
        self.valid = torch.cat([self.valid, torch.ones_like(chain, dtype=torch.bool)], 1)
        return self._forward(chain, self.valid.long(), self.positions[:, None] + steps)

    def keep(self, counts: Tensor, *, of: int) -> None:
        """Keeps the first `counts` [rows] of the `of` tokens of the last `extend`."""
        start = self.slots - of
        self.valid[:, start:] = torch.arange(of, device=self.device) < counts[:, None]
        self.positions = self.positions + counts
        self._crop(start + int(counts.max()))

    def branch(self, candidates: Tensor) -> State:
        """k candidates a row for one next position, [rows, k]; `choose` must follow.

        One step of k tokens: each sees the prefix and itself, and all share the prefix's cache
        and one position id (METHOD, 3).
        """
        self._refuse_windows()
        if self.attention not in ("eager", "sdpa"):
            raise OtterError(
                f"candidates in one step need a mask of their own, which {self.attention} ignores",
                hint='load the models with attn_implementation="sdpa"',
            )
        rows, k = candidates.shape
        itself = torch.eye(k, dtype=torch.bool, device=self.device)
        prefix = self.valid[:, None].expand(rows, k, self.slots)
        seen = torch.cat([prefix, itself.expand(rows, k, k)], -1)[:, None]  # [rows, 1, k, slots]
        return self._forward(candidates, self._mask(seen), self.positions[:, None].expand(rows, k))

    def choose(self, index: Tensor) -> None:
        """Keeps candidate `index` [rows] of the last `branch`: its cache entry moves into place."""
        at, rows = self.slots, torch.arange(len(index), device=self.device)
        for layer in self._layers():
            layer.keys[:, :, at] = layer.keys[rows, :, at + index]
            layer.values[:, :, at] = layer.values[rows, :, at + index]
        self.valid = torch.cat([self.valid, torch.ones_like(self.valid[:, :1])], 1)
        self.positions = self.positions + 1
        self._crop(at + 1)

    def cache_bytes(self) -> int:
        return sum(
            tensor.numel() * tensor.element_size()
            for layer in self._layers()
            for tensor in (layer.keys, layer.values)
        )

    def _forward(self, tokens: Tensor, mask: Tensor, positions: Tensor) -> State:
        self.passes += 1
        self.fed += tokens.numel()
        with torch.no_grad():
            return self.run(tokens, mask, positions)

    def _crop(self, slots: int) -> None:
        self.valid = self.valid[:, :slots]
        for layer in self._layers():
            if not layer.is_sliding:
                layer.keys, layer.values = layer.keys[:, :, :slots], layer.values[:, :, :slots]

    def _layers(self) -> list[Any]:
        return [layer for layer in self.cache.layers if layer.is_initialized]

    def _mask(self, seen: Tensor) -> Tensor:
        """A 4-d mask in the form that the base's attention takes as it is."""
        if self.attention == "sdpa":
            return seen
        dtype = self._layers()[0].keys.dtype
        return torch.zeros(seen.shape, dtype=dtype, device=self.device).masked_fill(
            ~seen, torch.finfo(dtype).min
        )

    def _refuse_windows(self) -> None:
        if any(self.cache.is_sliding):
            raise OtterError(
                "candidates and drafts in one step need a full KV cache; this base's has windows",
                hint="plain decoding, with signals beside it, works: leave --guide and --draft out",
            )
