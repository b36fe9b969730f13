"""A language model of one kind of text, as an expert to steer by (DExperts, METHOD, 3 and 4)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np

from otter_cli.core.intervals import Interval, interval, ratio
from otter_cli.signals import SignalConfig
from otter_cli.training.objectives.objective import Positions, Read, ReadBeside, next_tokens
from otter_cli.training.objectives.plain_texts import PlainTexts

if TYPE_CHECKING:
    from torch import Tensor

    from otter_cli.data.datasets import Batch


class LanguageModel(PlainTexts):
    """Cross-entropy of the next token, in nats. An insertion's action values q are what its expert
    adds to the base: `softmax(z + q)`, so that `z + alpha (q+ - q-)` is DExperts' `z + alpha (z+ -
    z-)` (arXiv 2105.03023, section 2.1). A language model of its own says its own logits."""

    kinds: ClassVar[tuple[str, ...]] = ("vocabulary",)

    objective: Literal["language-model"] = "language-model"

    def untouched(self, signal: SignalConfig) -> tuple[str, ...]:
        # What a low-rank head adds to all tokens alike, no softmax sees.
        return ("base", "inserted", "bias") if signal.size else ()

    def loss(self, read: Read, batch: Batch) -> Tensor:
        at, taken = next_tokens(batch)
        return _nats(read, batch, at, taken).mean()

    def outcomes(self, read: Read, batch: Batch) -> dict[str, Tensor]:
        at, taken = next_tokens(batch)
        each = _nats(read, batch, at, taken)
        rows = each.new_zeros(len(batch.last), 1)
        return {
            "nats": rows.index_add(0, at[0], each[:, None]),
            "tokens": rows.index_add(0, at[0], each.new_ones(len(each), 1)),
        }

    def metrics(
        self, outcomes: Mapping[str, np.ndarray], signal: SignalConfig
    ) -> dict[str, Interval]:
        """`nats` a token; blocks are resampled."""
        nats, tokens = outcomes["nats"][:, 0], outcomes["tokens"][:, 0]
        return {"nats": interval(ratio(nats, tokens), len(nats))}


def _nats(read: Read, batch: Batch, at: Positions, taken: Tensor) -> Tensor:
    """-log p of the tokens [N, 1] that follow, [N]."""
    logits = read(batch, at)
    if isinstance(read, ReadBeside):
        logits = logits + read.base_logits(batch, at)
    return -logits.log_softmax(-1).gather(-1, taken).squeeze(-1)
