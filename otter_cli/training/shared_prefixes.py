"""The two texts of a pair as one row: the beginning that both share, then either ending.

An ending attends to the beginning and to itself, and its positions continue from the beginning. A
token therefore sees what it sees in a row of its own, and scores and gradients are equal up to
rounding."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from otter_cli.model.masks import MASKED_ATTENTIONS, attention_masks, attention_windows
from otter_cli.model.otter import OtterForCausalLM

if TYPE_CHECKING:
    from otter_cli.data.batches import Positions
    from otter_cli.data.datasets import Batch


# A row of its own mask costs more a token than a row that sees all before it.
_MAX_RELATIVE_WIDTH = 0.9


@dataclass(frozen=True)
class SharedPrefixes:
    """A batch of pairs, row by row [beginning, end of the chosen, end of the rejected]."""

    batch: Batch

    @classmethod
    def of(cls, batch: Batch, model: OtterForCausalLM) -> SharedPrefixes | None:
        """None where rows of their own take fewer tokens, or the base takes no such masks."""
        attention = model.config._attn_implementation
        if batch.shared is None or attention not in MASKED_ATTENTIONS or _needs_own_rows(model):
            return None
        found = cls(batch)
        worth = found.width < _MAX_RELATIVE_WIDTH * 2 * batch.input_ids.shape[1]
        return found if worth else None

    @cached_property
    def lengths(self) -> tuple[Tensor, Tensor, Tensor]:
        """Of beginnings, chosen and rejected texts, [pairs, 1] each."""
        assert self.batch.shared is not None
        chosen, rejected = (self.batch.last + 1).chunk(2)
        return self.batch.shared[:, None], chosen[:, None], rejected[:, None]

    @property
    def width(self) -> int:
        shared, chosen, rejected = self.lengths
        return int((chosen + rejected - shared).max())

    @property
    def tokens(self) -> int:
        """Real tokens that go through the model."""
        shared, chosen, rejected = self.lengths
        return int((chosen + rejected - shared).sum())

    def arguments(self, model: OtterForCausalLM) -> dict[str, Any]:
        """What the model is called with."""
        shared, chosen, _ = self.lengths
        column = torch.arange(self.width, device=shared.device)
        second = column >= chosen
        # Padding, on the right, goes on like a text that nobody reads.
        positions = torch.where(second, column - chosen + shared, column)
        hidden = second[:, :, None] & ((column >= shared) & ~second)[:, None]
        seen = (column <= column[:, None]) & ~hidden
        mask = attention_masks(
            seen, (positions, positions), attention_windows(model.config), model.base.dtype
        )
        last = model.shape.max_positions - 1
        return {
            "input_ids": self._input_ids(column, second, positions),
            "attention_mask": mask,
            "position_ids": positions.clamp(max=last),
        }

    def places(self, at: Positions) -> Positions:
        """Where positions of the batch, by text and token, lie in these rows."""
        texts, tokens = at
        shared, chosen, _ = (length.squeeze(1) for length in self.lengths)
        pair = texts % len(shared)
        moved = (texts >= len(shared)) & (tokens >= shared[pair])
        return pair, torch.where(moved, tokens - shared[pair] + chosen[pair], tokens)

    def _input_ids(self, column: Tensor, second: Tensor, positions: Tensor) -> Tensor:
        of_chosen, of_rejected = self.batch.input_ids.chunk(2)
        longest = self.batch.input_ids.shape[1] - 1
        first = of_chosen[:, column.clamp(max=longest)]
        return torch.where(second, of_rejected.gather(1, positions.clamp(max=longest)), first)


def _needs_own_rows(model: OtterForCausalLM) -> bool:
    """Whether a layer carries its state from token to token, whatever a mask says; or angles depend
    on the length of a row, which here is that of two texts."""
    rule = model.shape.length_rule
    return bool(model.shape.family.ffn_only) or (rule is not None and rule.changes_angles)
