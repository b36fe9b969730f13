"""Bradley-Terry: the chosen text of a pair is to score above the rejected (METHOD, 3)."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import NonNegativeFloat

from otter_cli.core.errors import OtterError
from otter_cli.signals import SignalConfig
from otter_cli.training.objectives.objective import (
    Read,
    growing_weights,
    last_tokens,
    read_alone,
)
from otter_cli.training.objectives.pairs import PairObjective

if TYPE_CHECKING:
    from torch import Tensor

    from otter_cli.data.datasets import Batch


class BradleyTerry(PairObjective):
    """`-log sigmoid(r(chosen) - r(rejected) - margin)` at the last token; or at every prefix, with
    weights that grow with position, since early prefixes say least of how a text ends.

    `margin` counts times the pair's own where the data has a column of them (Llama 2, arXiv
    2307.09288, 3.2.2). `centring` is the weight of `(r(chosen) + r(rejected))^2`, which gives
    scores a zero (arXiv 2312.09244, 4.3).
    """

    kinds: ClassVar[tuple[str, ...]] = ("value",)

    objective: Literal["bradley-terry"] = "bradley-terry"
    positions: Literal["last", "every"] = "last"
    margin: NonNegativeFloat | None = None
    centring: NonNegativeFloat = 0.0

    def untouched(self, signal: SignalConfig) -> tuple[str, ...]:
        # It cancels out of every difference, so only rounding would move it.
        return () if self.centring else ("bias",)

    def check(self, signal: SignalConfig) -> None:
        super().check(signal)
        if signal.size != 1:
            raise OtterError(
                f"signal {signal.name!r} has {signal.size} attributes; a pair orders one",
                hint="graft one signal for each attribute, with pairs of its own",
            )

    def loss(self, read: Read, batch: Batch) -> Tensor:
        import torch.nn.functional as F

        if self.positions == "last":
            columns = batch.last[:, None]
            weights = columns.new_ones(len(columns) // 2, 1)
        else:
            columns, weights = _every_column(batch), _weights(batch)
        rows = last_tokens(batch)[0].repeat_interleave(columns.shape[1])
        scores = read_alone(read, batch, (rows, columns.flatten()))
        chosen, rejected = _of_pairs(scores, batch)
        each = -F.logsigmoid(chosen - rejected - self._margin(batch))
        if self.centring:
            each = each + self.centring * (chosen + rejected) ** 2
        return (each * weights).sum() / len(each)

    def _margin(self, batch: Batch) -> Tensor | float:
        if batch.labels is None:
            return self.margin or 0.0
        return batch.labels * (1.0 if self.margin is None else self.margin)

    def outcomes(self, read: Read, batch: Batch) -> dict[str, Tensor]:
        chosen, rejected = _of_pairs(read(batch, last_tokens(batch)), batch)
        return {"margin": (chosen - rejected).squeeze(-1)}


def _of_pairs(scores: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
    """Scores of the chosen and of the rejected texts, [pairs, positions], that go text by text."""
    chosen, rejected = scores.view(len(batch.last), -1).chunk(2)
    return chosen, rejected


def _every_column(batch: Batch) -> Tensor:
    """[texts, tokens]; a text that has ended keeps its last token's score."""
    import torch

    columns = torch.arange(batch.input_ids.shape[1], device=batch.last.device)
    return torch.minimum(columns, batch.last[:, None])


def _weights(batch: Batch) -> Tensor:
    """[pairs, tokens]: up to the end of a pair's longer text, a sum of one for each pair."""
    import torch

    chosen, rejected = batch.last.chunk(2)
    longest = torch.maximum(chosen, rejected)[:, None]
    columns = torch.arange(batch.input_ids.shape[1], device=longest.device)
    return growing_weights(columns, longest) * (columns <= longest)
