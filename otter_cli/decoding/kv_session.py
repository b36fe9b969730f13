"""Decoding steps over one KV cache: one token a row, a chain, k candidates, or a tree of tokens.

The rows of a batch are padded on the left and may keep different numbers of tokens of a step. A
cache slot that a row does not keep is masked out for that row; slots that no row keeps are cropped.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import Cache

from otter_cli.core.errors import OtterError
from otter_cli.decoding.kv_slots import KVSlots, tree_mask
from otter_cli.families.rope import length_rule
from otter_cli.model.grouped_attention import unrepeated_keys
from otter_cli.model.masks import (
    MASKED_ATTENTIONS,
    attention_masks,
    attention_windows,
    is_recurrent,
)


@dataclass
class HiddenStates:
    """Final states of positions: the base's [rows, n, d], and the insertions' [rows, n, D] by name.
    The inserted states may be computed only when they are first read (`LazyStates`)."""

    base: Tensor
    inserted: Mapping[str, Tensor]

    def select(self, index: Tensor) -> HiddenStates:
        """One position a row, `index` [rows]: states [rows, 1, ...]."""
        return self.gather(index[:, None])

    def gather(self, nodes: Tensor) -> HiddenStates:
        """Positions `nodes` [rows, m] of each row: states [rows, m, ...]."""
        rows = torch.arange(len(nodes), device=nodes.device)[:, None]
        return self._map(lambda states: states[rows, nodes])

    def last(self, count: int = 1) -> HiddenStates:
        """The last `count` positions of each row."""
        return self._map(lambda states: states[:, -count:])

    def rows(self, index: Tensor) -> HiddenStates:
        """The states of the rows `index`, which may repeat."""
        return self._map(lambda states: states[index])

    def flatten_positions(self) -> HiddenStates:
        """Every position as a row: states [rows * n, 1, ...]."""
        return self._map(lambda states: states.flatten(0, 1)[:, None])

    def split(self, parts: int) -> HiddenStates:
        """The positions of each row in equal parts: states [rows * parts, n / parts, ...]."""
        return self._map(lambda states: states.unflatten(1, (parts, -1)).flatten(0, 1))

    def _map(self, function: Callable[[Tensor], Tensor]) -> HiddenStates:
        inserted = {name: function(states) for name, states in self.inserted.items()}
        return HiddenStates(function(self.base), inserted)


def concatenate(states: Sequence[HiddenStates]) -> HiddenStates:
    """The positions of all `states`, one after the other."""
    names = states[0].inserted
    inserted = {name: torch.cat([state.inserted[name] for state in states], 1) for name in names}
    return HiddenStates(torch.cat([state.base for state in states], 1), inserted)


class KVSession(ABC):
    """A KV cache and its bookkeeping, for any decoder. Some families compute texts of more than a
    certain length in another way (longrope). When a text passes that length, the cache is emptied
    and all tokens are fed again, as transformers' `generate` does for the family."""

    def __init__(self, new_cache: Callable[[], Cache], model: PreTrainedModel) -> None:
        self.new_cache, self.cache, self.device = new_cache, new_cache(), model.device
        self.length_rule = length_rule(model.config.to_dict())
        self.past_length_rule = False  # whether the cached texts are longer than the rule's length
        no_tokens = torch.zeros(0, 0, dtype=torch.long, device=model.device)
        self.slots = KVSlots(self.cache, None if self.length_rule is None else no_tokens)
        self.recurrent = is_recurrent(model.config)
        self.attention: str = model.config._attn_implementation
        self.family: str = model.config.model_type
        self.windows = attention_windows(model.config)
        self.kept_slots = torch.zeros(0, 0, dtype=torch.bool)  # by row, [rows, slots]
        self.positions = torch.zeros(0, dtype=torch.long)  # number of tokens kept so far, [rows]
        self._no_tree = tree_mask((), self.device)
        self.tree = self._no_tree  # tokens fed after the kept slots, of which none is kept yet
        self.passes = self.fed_tokens = self.kept_tokens = 0

    @abstractmethod
    def run(self, tokens: Tensor, mask: Any, positions: Tensor, last: int) -> HiddenStates:
        """One pass over the cache; the states of `tokens` [rows, n], or of the `last` of them."""

    def catch_up(self) -> None:
        """Runs what was deferred and reads the cache. Called before slots move or are measured."""
        return

    @property
    def width(self) -> int:
        """How many slots of the cache are decided: kept by some row."""
        return self.kept_slots.shape[1]

    @property
    def depth(self) -> int | None:
        """How many tokens may follow the text before the base computes it in another way. None
        where there is no such length, or where the text has passed it."""
        rule = self.length_rule
        left = 0 if rule is None else rule.threshold - int(self.positions.max())
        return left if left > 0 else None

    def prefill(self, prompts: list[list[int]]) -> HiddenStates:
        """Feeds the prompts; the states of their last tokens, [rows, 1, ...]."""
        width = max(map(len, prompts))
        self._require_room(width)
        padded = [[0] * (width - len(prompt)) + prompt for prompt in prompts]
        lengths = torch.tensor([len(prompt) for prompt in prompts], device=self.device)
        self.kept_slots = torch.arange(width, device=self.device) >= width - lengths[:, None]
        self.positions = lengths
        positions = (self.kept_slots.long().cumsum(-1) - 1).clamp(min=0)
        tokens = torch.tensor(padded, device=self.device)
        self._must_refeed(positions)
        return self._forward(tokens, self.kept_slots.long(), positions, last=1)

    def step(self, tokens: Tensor) -> HiddenStates:
        """Feeds and keeps one token a row, [rows]; its states, [rows, 1, ...]."""
        state = self.extend(tokens[:, None])
        self._keep_first()
        return state

    def append(self, chain: Tensor) -> HiddenStates:
        """Feeds and keeps n tokens a row, [rows, n]; their states, [rows, n, ...]."""
        states = self.extend(chain)
        self.keep(torch.full_like(chain[:, 0], chain.shape[1]))
        return states

    def extend(self, chain: Tensor) -> HiddenStates:
        """Feeds n tokens a row, [rows, n], each of which sees those before it. `keep` must
        follow."""
        n = chain.shape[1]
        if n > 1:
            self.require_attention_only()
        if self._windowed and (n > 1 or not self._cached_windows):
            return self.extend_tree(chain, range(-1, n - 1))
        self._require_room(n)
        self.tree = tree_mask(tuple(range(-1, n - 1)), self.device)
        mask = torch.cat([self.kept_slots, torch.ones_like(chain, dtype=torch.bool)], 1)
        positions = self.positions[:, None] + self.tree.depths
        if self._must_refeed(positions):
            positions = self._slot_positions()
        return self._forward(chain, mask.long(), positions, last=n)

    def extend_candidates(self, candidates: Tensor) -> HiddenStates:
        """Feeds k candidates a row for one next position, [rows, k]; `keep_candidate` must follow.
        One pass of k tokens: each sees the prefix and itself, and all share the prefix's cache and
        one position id (docs/method.md, "Guided decoding")."""
        return self.extend_tree(candidates, [-1] * candidates.shape[1])

    def extend_tree(self, tokens: Tensor, parents: Sequence[int]) -> HiddenStates:
        """Feeds tokens [rows, n] of a tree, each of which sees the text and its ancestors.
        `parents` are indices into all tokens of the tree, those of earlier calls included; -1 is
        the text. `keep_path` must follow. Raises OtterError where the attention or the cache does
        not support it."""
        self.require_masks()
        self._require_room(tokens.shape[1])
        start = len(self.tree)
        self.tree = tree_mask((*self.tree.parents, *parents), self.device)
        positions = self.positions[:, None] + self.tree.depths[start:]
        dtype = self.slots.dtype()
        if self._must_refeed(positions):
            start, positions = 0, self._slot_positions()
        n = len(self.tree) - start
        prefix = self.kept_slots[:, None].expand(-1, n, -1)
        ancestors = self.tree.mask[start:].expand(len(prefix), -1, -1)
        visible = torch.cat([prefix, ancestors], -1)
        if positions.shape[1] > n:  # the text is fed again
            visible = torch.cat([self._text_mask(), visible], 1)
        slots = (positions, self._padded(self._slot_positions())) if self._windowed else None
        mask = attention_masks(self._padded(visible), slots, self.windows, dtype)
        return self._forward(tokens, mask, positions, last=tokens.shape[1])

    def keep(self, counts: Tensor) -> None:
        """Keeps the first `counts` [rows] tokens of the last `extend`."""
        self._keep_counts(counts, int(counts.max()))

    def keep_candidate(self, index: Tensor) -> None:
        """Keeps candidate `index` [rows] of the last `extend_candidates`. Its cache entry moves to
        the first slot after the text."""
        places = index.tolist()
        # The first candidate is in that slot already.
        if any(places):
            if len(set(places)) == 1:
                self.slots.move(self.width + places[0], self.width)
            else:
                self.slots.gather(self.width, index[:, None])
        self._keep_first()

    def keep_path(self, path: Tensor, counts: Tensor) -> None:
        """Keeps the first `counts` [rows] tokens of the tree's `path` [rows, m], in that order.
        Their cache entries move into the slots after the text."""
        longest = int(counts.max())
        # The entries of a chain are in those slots already.
        if not bool((path[:, :longest] == torch.arange(longest, device=self.device)).all()):
            self.slots.gather(self.width, path[:, :longest])
        self._keep_counts(counts, longest)

    def crop(self, counts: Tensor) -> None:
        """Drops the last `counts` [rows] kept tokens."""
        if self._cached_windows:
            raise OtterError("a windowed KV cache takes no tokens back", hint="use masked windows")
        self.require_attention_only()
        self.catch_up()
        from_end = self.kept_slots.long().flip(1).cumsum(1).flip(1)
        self.kept_slots &= from_end > counts[:, None]
        self.positions = self.positions - counts
        self.kept_tokens -= int(counts.sum())
        used = self.kept_slots.any(0).nonzero()
        self.kept_slots = self.kept_slots[:, : int(used[-1]) + 1]
        self._compact()
        self.slots.truncate(self.width)

    def reorder(self, rows: Tensor) -> None:
        """The rows become `rows`, an index that may repeat some and leave others out."""
        self.require_attention_only()
        self.catch_up()
        self.slots.select(rows)
        self.kept_slots, self.positions = self.kept_slots[rows], self.positions[rows]
        if self._compact():
            self.slots.truncate(self.width)

    def fork(self, copies: int) -> None:
        """Each row becomes `copies` rows, side by side."""
        rows = torch.arange(len(self.positions), device=self.device)
        self.reorder(rows.repeat_interleave(copies))

    def cache_bytes(self) -> int:
        self.catch_up()
        return self.slots.bytes()

    @property
    def _windowed(self) -> bool:
        return any(self.windows)

    @property
    def _cached_windows(self) -> bool:
        return any(self.cache.is_sliding)

    def _keep_first(self) -> None:
        """Every row keeps the first token of the step, which leaves no hole."""
        self.kept_slots = torch.nn.functional.pad(self.kept_slots, (0, 1), value=True)
        self.positions = self.positions + 1
        self.kept_tokens += len(self.positions)
        if len(self.tree) > 1:
            self.slots.truncate(self.width)
        self.tree = self._no_tree

    def _keep_counts(self, counts: Tensor, longest: int) -> None:
        self.catch_up()
        kept = torch.arange(longest, device=self.device) < counts[:, None]
        self.kept_slots = torch.cat([self.kept_slots, kept], 1)
        self.positions = self.positions + counts
        self.kept_tokens += int(counts.sum())
        all_kept = longest == len(self.tree)
        self.tree = self._no_tree
        if self._compact() or not all_kept:
            self.slots.truncate(self.width)

    def _compact(self) -> bool:
        """Closes the holes that rows leave by keeping different numbers of tokens, from a third
        of the slots on."""
        longest = int(self.positions.max())
        if self._cached_windows or self.width <= 1.5 * longest + 16:
            return False
        order = self.kept_slots.long().argsort(dim=1, stable=True)[:, self.width - longest :]
        self.slots.gather(0, order)
        self.kept_slots = self.kept_slots.gather(1, order)
        return True

    def _forward(self, tokens: Tensor, mask: Any, positions: Tensor, last: int) -> HiddenStates:
        """States of the `last` tokens. With more positions than tokens, the text is fed again."""
        all_states = last == positions.shape[1]
        self.slots.add(tokens)
        if positions.shape[1] > tokens.shape[1]:
            assert self.slots.tokens is not None
            tokens, positions = self.slots.tokens, positions.clamp(min=0)
        self.passes += 1
        self.fed_tokens += tokens.numel()
        with torch.no_grad(), unrepeated_keys():
            state = self.run(tokens, mask, positions, last)
        # Slicing lazy states would compute them.
        return state if all_states else state.last(last)

    def _must_refeed(self, positions: Tensor) -> bool:
        """Whether all tokens must be fed again; the cache is then empty. That is where the next
        `positions` [rows, n] and the cached texts lie on different sides of the rule's length."""
        rule = self.length_rule
        if rule is None:
            return False
        lengths = positions.amax(1) + 1
        shortest, longest = int(lengths.min()), int(lengths.max())
        rule.check_one_side(shortest, longest, "one batch")
        changed = self.past_length_rule != (longest > rule.threshold)
        self.past_length_rule = longest > rule.threshold
        if not (changed and self.width):
            return False
        self.catch_up()
        self.cache = self.new_cache()
        self.slots = KVSlots(self.cache, self.slots.tokens)
        return self.passes > 0

    def _text_mask(self) -> Tensor:
        """Which slots each token of the text sees, [rows, width, width + tree]."""
        causal = torch.ones(self.width, self.width, dtype=torch.bool, device=self.device).tril()
        return torch.nn.functional.pad(self.kept_slots[:, None] & causal, (0, len(self.tree)))

    def _slot_positions(self) -> Tensor:
        text = self.kept_slots.long().cumsum(-1) - 1
        return torch.cat([text, self.positions[:, None] + self.tree.depths], 1)

    def _padded(self, slots: Tensor) -> Tensor:
        """Padded to the number of slots that the attention sees, where they are preallocated."""
        more = (self.slots.capacity or 0) - slots.shape[-1]
        return torch.nn.functional.pad(slots, (0, more)) if more > 0 else slots

    def _require_room(self, tokens: int) -> None:
        capacity, needed = self.slots.capacity, self.width + len(self.tree) + tokens
        if capacity is not None and needed > capacity:
            raise OtterError(
                f"{needed} slots, of a KV cache of {capacity}", hint="preallocate a longer one"
            )

    def require_attention_only(self) -> None:
        """Raises OtterError for a model with layers of linear attention."""
        if self.recurrent:
            raise OtterError(
                f"{self.family} has layers of linear attention: their state goes from token to "
                "token and takes none back, so candidates, drafts and forks are not supported",
                hint="decode plainly, or guide by action values (a vocabulary signal)",
            )

    def require_masks(self) -> None:
        """Raises OtterError where a step cannot hold tokens of which some are not kept."""
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
