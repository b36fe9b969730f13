"""The two texts of a pair as one row: their shared beginning, then each ending.

An ending attends to the beginning and to itself, and its positions continue from the beginning.
Every token therefore attends to the tokens of its own text alone, and scores and gradients equal
those of two rows up to rounding."""

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


# A custom mask costs more per token than a causal one, so a small saving does not pay.
_MAX_RELATIVE_WIDTH = 0.9


@dataclass(frozen=True)
class SharedPrefixes:
    """A batch of pairs in rows [beginning, ending of the chosen, ending of the rejected]."""

    batch: Batch

    @classmethod
    def of(cls, batch: Batch, model: OtterForCausalLM) -> SharedPrefixes | None:
        """None where two rows take fewer tokens, or the base cannot use such masks."""
        attention = model.config._attn_implementation
        if (
            batch.shared_tokens is None
            or attention not in MASKED_ATTENTIONS
            or _needs_own_rows(model)
        ):
            return None
        shared = cls(batch)
        worth = shared.width < _MAX_RELATIVE_WIDTH * 2 * batch.input_ids.shape[1]
        return shared if worth else None

    @cached_property
    def lengths(self) -> tuple[Tensor, Tensor, Tensor]:
        """Lengths of the beginnings, the chosen and the rejected texts, [pairs, 1] each."""
        assert self.batch.shared_tokens is not None
        chosen, rejected = (self.batch.last + 1).chunk(2)
        return self.batch.shared_tokens[:, None], chosen[:, None], rejected[:, None]

    @property
    def width(self) -> int:
        shared, chosen, rejected = self.lengths
        return int((chosen + rejected - shared).max())

    @property
    def tokens(self) -> int:
        """Real tokens that go through the model."""
        shared, chosen, rejected = self.lengths
        return int((chosen + rejected - shared).sum())

    def model_inputs(self, model: OtterForCausalLM) -> dict[str, Any]:
        """Token ids, mask and position ids of the rows, as keyword arguments of the model."""
        shared, chosen, _ = self.lengths
        column = torch.arange(self.width, device=shared.device)
        second = column >= chosen
        # Padding on the right continues the second ending. Nothing reads it.
        positions = torch.where(second, column - chosen + shared, column)
        other_ending = second[:, :, None] & ((column >= shared) & ~second)[:, None]
        visible = (column <= column[:, None]) & ~other_ending
        mask = attention_masks(
            visible, (positions, positions), attention_windows(model.config), model.base.dtype
        )
        last = model.shape.max_positions - 1
        return {
            "input_ids": self._input_ids(column, second, positions),
            "attention_mask": mask,
            "position_ids": positions.clamp(max=last),
        }

    def map_positions(self, at: Positions) -> Positions:
        """Positions of the batch, by text and token, as positions in these rows."""
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
    """Whether a layer carries a state from token to token, which no mask stops; or rotary angles
    depend on the length of a row, which here is that of two texts."""
    rule = model.shape.length_rule
    return bool(model.shape.family.ffn_only) or (rule is not None and rule.changes_angles)
