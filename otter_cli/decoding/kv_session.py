"""Decoding steps over one KV cache: one token a row, a chain, k candidates, or a tree of tokens.

The rows of a batch are padded on the left and may keep different numbers of tokens of a step. A
cache slot that a row does not keep is masked out for that row; slots that no row keeps are cropped.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import Cache

from otter_cli.core.errors import OtterError
from otter_cli.decoding.hidden_states import HiddenStates
from otter_cli.decoding.kv_slots import KVSlots, tree_mask
from otter_cli.families.rope import length_rule
from otter_cli.model.masks import (
    MASKED_ATTENTIONS,
    attention_masks,
    attention_windows,
    is_recurrent,
)


class KVSession(ABC):
    """The cache and its bookkeeping, for any decoder.

    Where the base computes texts of more than so many tokens in another way (longrope), the cache
    is made anew as a text passes that length: all its tokens are fed again, as `generate` of
    transformers does for the family.
    """

    def __init__(self, new_cache: Callable[[], Cache], model: PreTrainedModel) -> None:
        self.new_cache, self.rule = new_cache, length_rule(model.config.to_dict())
        self.cache, self.device, self.recurrent = (
            new_cache(),
            model.device,
            is_recurrent(model.config),
        )
        nothing = torch.zeros(0, 0, dtype=torch.long, device=model.device)
        self.slots = KVSlots(self.cache, None if self.rule is None else nothing)
        self.past_rule = False  # whether the cache is of texts past the rule's length
        self.attention: str = model.config._attn_implementation
        self.family: str = model.config.model_type
        self.windows = attention_windows(model.config)
        self.valid = torch.zeros(0, 0, dtype=torch.bool)  # what a row keeps, [rows, slots]
        self.positions = torch.zeros(0, dtype=torch.long)  # tokens kept so far, [rows]
        self._no_tree = tree_mask((), self.device)
        self.tree = self._no_tree  # fed after those slots, and not decided on
        self.passes = self.fed = self.kept = 0

    @abstractmethod
    def run(self, tokens: Tensor, mask: Any, positions: Tensor, last: int) -> HiddenStates:
        """One pass over the cache; the states of `tokens` [rows, n], or of the `last` of them."""

    def settle(self) -> None:
        """What lags behind the cache catches up: before slots move, or are looked at."""
        return

    @property
    def width(self) -> int:
        """How many slots of the cache are decided on."""
        return self.valid.shape[1]

    @property
    def depth(self) -> int | None:
        """How many tokens deep a step may go in which only states of one kind are wanted; None: as
        deep as any."""
        left = 0 if self.rule is None else self.rule.at - int(self.positions.max())
        return left if left > 0 else None

    def prefill(self, prompts: list[list[int]]) -> HiddenStates:
        """Feeds the prompts; the states of their last tokens, [rows, 1, ...]."""
        width = max(map(len, prompts))
        self._require_room(width)
        padded = [[0] * (width - len(prompt)) + prompt for prompt in prompts]
        lengths = torch.tensor([len(prompt) for prompt in prompts], device=self.device)
        self.valid = torch.arange(width, device=self.device) >= width - lengths[:, None]
        self.positions = lengths
        positions = (self.valid.long().cumsum(-1) - 1).clamp(min=0)
        tokens = torch.tensor(padded, device=self.device)
        self._starts_again(positions)
        return self._forward(tokens, self.valid.long(), positions, last=1)

    def step(self, tokens: Tensor) -> HiddenStates:
        """One token a row, [rows]; its states, [rows, 1, ...]."""
        state = self.extend(tokens[:, None])
        self._keep_one()
        return state

    def extend(self, chain: Tensor) -> HiddenStates:
        """n tokens a row, [rows, n], each seeing those before it; `keep` must follow."""
        n = chain.shape[1]
        if n > 1:
            self.require_attention_only()
        if self._windowed and (n > 1 or not self._cached_windows):
            return self.grow(chain, range(-1, n - 1))
        self._require_room(n)
        self.tree = tree_mask(tuple(range(-1, n - 1)), self.device)
        seen = torch.cat([self.valid, torch.ones_like(chain, dtype=torch.bool)], 1)
        positions = self.positions[:, None] + self.tree.depths
        if self._starts_again(positions):
            positions = self._slot_positions()
        return self._forward(chain, seen.long(), positions, last=n)

    def branch(self, candidates: Tensor) -> HiddenStates:
        """k candidates a row for one next position, [rows, k]; `choose` must follow.

        One step of k tokens: each sees the prefix and itself, and all share the prefix's cache
        and one position id (METHOD, 3).
        """
        return self.grow(candidates, [-1] * candidates.shape[1])

    def grow(self, tokens: Tensor, parents: Sequence[int]) -> HiddenStates:
        """Tokens [rows, n] of a tree, each seeing the text and those it follows: `parents` counts
        all tokens of the tree, those of earlier calls too; -1 is the text. `keep_path` must
        follow. Raises OtterError where the attention or the cache can't."""
        self.require_masks()
        self._require_room(tokens.shape[1])
        start = len(self.tree)
        self.tree = tree_mask((*self.tree.parents, *parents), self.device)
        positions = self.positions[:, None] + self.tree.depths[start:]
        dtype = self.slots.dtype()
        if self._starts_again(positions):
            start, positions = 0, self._slot_positions()
        n = len(self.tree) - start
        prefix = self.valid[:, None].expand(-1, n, -1)
        among = self.tree.seen[start:].expand(len(prefix), -1, -1)
        seen = torch.cat([prefix, among], -1)
        if positions.shape[1] > n:  # the text is fed again
            seen = torch.cat([self._seen_in_text(), seen], 1)
        slots = (positions, self._padded(self._slot_positions())) if self._windowed else None
        mask = attention_masks(self._padded(seen), slots, self.windows, dtype)
        return self._forward(tokens, mask, positions, last=tokens.shape[1])

    def keep(self, counts: Tensor) -> None:
        """Keeps the first `counts` [rows] tokens of the last `extend`."""
        longest = int(counts.max())
        self._decide(counts, longest)

    def choose(self, index: Tensor) -> None:
        """Keeps candidate `index` [rows] of the last `branch`: its cache entry moves into place."""
        places = index.tolist()
        # The likeliest candidate lies where it belongs.
        if any(places):
            if len(set(places)) == 1:
                self.slots.move(self.width + places[0], self.width)
            else:
                self.slots.gather(self.width, index[:, None])
        self._keep_one()

    def keep_path(self, path: Tensor, counts: Tensor) -> None:
        """Keeps the first `counts` [rows] tokens of the tree's `path` [rows, m], in that order:
        their cache entries move into place."""
        longest = int(counts.max())
        # A chain lies where it belongs.
        if not bool((path[:, :longest] == torch.arange(longest, device=self.device)).all()):
            self.slots.gather(self.width, path[:, :longest])
        self._decide(counts, longest)

    def crop(self, counts: Tensor) -> None:
        """Takes the last `counts` [rows] kept tokens back."""
        if self._cached_windows:
            raise OtterError("a windowed KV cache takes no tokens back", hint="use masked windows")
        self.require_attention_only()
        self.settle()
        from_end = self.valid.long().flip(1).cumsum(1).flip(1)
        self.valid &= from_end > counts[:, None]
        self.positions = self.positions - counts
        self.kept -= int(counts.sum())
        used = self.valid.any(0).nonzero()
        self.valid = self.valid[:, : int(used[-1]) + 1]
        self._compact()
        self.slots.truncate(self.width)

    def reorder(self, rows: Tensor) -> None:
        """The rows become `rows`, an index that may repeat some and leave others out."""
        self.require_attention_only()
        self.settle()
        self.slots.select(rows)
        self.valid, self.positions = self.valid[rows], self.positions[rows]
        if self._compact():
            self.slots.truncate(self.width)

    def fork(self, copies: int) -> None:
        """Each row becomes `copies` rows, side by side."""
        rows = torch.arange(len(self.positions), device=self.device)
        self.reorder(rows.repeat_interleave(copies))

    def cache_bytes(self) -> int:
        self.settle()
        return self.slots.bytes()

    @property
    def _windowed(self) -> bool:
        return any(self.windows)

    @property
    def _cached_windows(self) -> bool:
        return any(self.cache.is_sliding)

    def _keep_one(self) -> None:
        """Every row keeps the first token of the step; no hole comes of it."""
        self.valid = torch.nn.functional.pad(self.valid, (0, 1), value=True)
        self.positions = self.positions + 1
        self.kept += len(self.positions)
        if len(self.tree) > 1:
            self.slots.truncate(self.width)
        self.tree = self._no_tree

    def _decide(self, counts: Tensor, longest: int) -> None:
        self.settle()
        kept = torch.arange(longest, device=self.device) < counts[:, None]
        self.valid = torch.cat([self.valid, kept], 1)
        self.positions = self.positions + counts
        self.kept += int(counts.sum())
        whole = longest == len(self.tree)
        self.tree = self._no_tree
        if self._compact() or not whole:
            self.slots.truncate(self.width)

    def _compact(self) -> bool:
        """Rows that keep different numbers leave holes: once they are a third, they are closed."""
        longest = int(self.positions.max())
        if self._cached_windows or self.width <= 1.5 * longest + 16:
            return False
        order = self.valid.long().argsort(dim=1, stable=True)[:, self.width - longest :]
        self.slots.gather(0, order)
        self.valid = self.valid.gather(1, order)
        return True

    def _forward(self, tokens: Tensor, mask: Any, positions: Tensor, last: int) -> HiddenStates:
        """States of the `last` tokens. Of more positions than tokens, the text is fed again."""
        wanted_all = last == positions.shape[1]
        self.slots.add(tokens)
        if positions.shape[1] > tokens.shape[1]:
            assert self.slots.tokens is not None
            tokens, positions = self.slots.tokens, positions.clamp(min=0)
        self.passes += 1
        self.fed += tokens.numel()
        with torch.no_grad():
            state = self.run(tokens, mask, positions, last)
        # States that are made only when somebody looks are left as they are.
        return state if wanted_all else state.last(last)

    def _starts_again(self, positions: Tensor) -> bool:
        """Whether all tokens have to be fed again, after which the cache is empty: `positions`
        [rows, n], which come next, and the cache lie on different sides of the rule's length."""
        if self.rule is None:
            return False
        longest = positions.amax(1) + 1
        shortest, most = int(longest.min()), int(longest.max())
        self.rule.check_one_side(shortest, most, "one batch")
        changed = self.past_rule != (most > self.rule.at)
        self.past_rule = most > self.rule.at
        if not (changed and self.width):
            return False
        self.settle()
        self.cache = self.new_cache()
        self.slots = KVSlots(self.cache, self.slots.tokens)
        return self.passes > 0

    def _seen_in_text(self) -> Tensor:
        """Which slots each token of the text sees, [rows, width, width + tree]."""
        causal = torch.ones(self.width, self.width, dtype=torch.bool, device=self.device).tril()
        return torch.nn.functional.pad(self.valid[:, None] & causal, (0, len(self.tree)))

    def _slot_positions(self) -> Tensor:
        kept = self.valid.long().cumsum(-1) - 1
        return torch.cat([kept, self.positions[:, None] + self.tree.depths], 1)

    def _padded(self, slots: Tensor) -> Tensor:
        """As many slots as the attention will see: all of them, where they are preallocated."""
        more = (self.slots.capacity or 0) - slots.shape[-1]
        return torch.nn.functional.pad(slots, (0, more)) if more > 0 else slots

    def _require_room(self, tokens: int) -> None:
        capacity, wanted = self.slots.capacity, self.width + len(self.tree) + tokens
        if capacity is not None and wanted > capacity:
            raise OtterError(
                f"{wanted} slots, of a KV cache of {capacity}", hint="preallocate a longer one"
            )

    def require_attention_only(self) -> None:
        if self.recurrent:
            raise OtterError(
                f"{self.family} has layers of linear attention: their state goes from token to "
                "token and takes none back, so candidates, drafts and forks are not supported",
                hint="decode plainly, or guide by action values (a vocabulary signal)",
            )

    def require_masks(self) -> None:
        """Raises OtterError where a step can't hold tokens of which some are not kept."""
        self.require_attention_only()
        if self._cached_windows:
            raise OtterError(
                "a step of many tokens needs every slot, and this KV cache keeps windows only",
                hint='DecodingSession(model, windows="masked")',
            )
        if self.attention not in MASKED_ATTENTIONS:
            raise OtterError(
                f"candidates in one step need a mask of their own, which {self.attention} ignores",
                hint='load the models with attn_implementation="sdpa"',
            )
