"""An autoregressive reward model in the insertion: log-probabilities as rewards of tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import PositiveFloat

from otter_cli.signals import SignalConfig
from otter_cli.training.objectives.objective import Read, next_tokens
from otter_cli.training.objectives.pairs import PairObjective

if TYPE_CHECKING:
    from torch import Tensor

    from otter_cli.data.datasets import Batch


class Autoregressive(PairObjective):
    """`-log sigmoid(beta (log pi_r(chosen) - log pi_r(rejected)))`, pi_r the softmax of the action
    values, summed over a text's tokens (GenARM, arXiv 2410.08193). Guidance adds it in logs."""

    kinds: ClassVar[tuple[str, ...]] = ("vocabulary",)

    objective: Literal["autoregressive"] = "autoregressive"
    beta: PositiveFloat = 0.1

    def untouched(self, signal: SignalConfig) -> tuple[str, ...]:
        # What a low-rank head adds to all tokens alike, no softmax sees.
        return ("base", "inserted", "bias") if signal.size else ()

    def loss(self, read: Read, batch: Batch) -> Tensor:
        import torch.nn.functional as F

        return -F.logsigmoid(self.beta * self._margin(read, batch)).mean()

    def outcomes(self, read: Read, batch: Batch) -> dict[str, Tensor]:
        return {"margin": self._margin(read, batch)}

    def _margin(self, read: Read, batch: Batch) -> Tensor:
        """Of summed log-probabilities, [pairs]."""
        (rows, columns), taken = next_tokens(batch)
        # Of a shared beginning both have the same: it cancels, and skips the vocabulary.
        apart = columns + 1 >= _shared_tokens(batch)[rows]
        rows, columns, taken = rows[apart], columns[apart], taken[apart]
        logs = read(batch, (rows, columns)).log_softmax(-1).gather(-1, taken).squeeze(-1)
        sums = logs.new_zeros(len(batch.last)).index_add(0, rows, logs)
        chosen, rejected = sums.chunk(2)
        return chosen - rejected


def _shared_tokens(batch: Batch) -> Tensor:
    """How many tokens each text has in common with the other of its pair, [texts]."""
    chosen, rejected = batch.input_ids.chunk(2)
    real = batch.attention_mask.bool()
    same = (chosen == rejected) & real.chunk(2)[0] & real.chunk(2)[1]
    return same.long().cumprod(1).sum(1).repeat(2)
