"""Action values from labels of whole texts: of the tokens that were taken, or by consistency of
each state's with the next one's (METHOD, 3)."""

from __future__ import annotations

from abc import ABC
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from pydantic import NonNegativeFloat

from otter_cli.core.errors import OtterError
from otter_cli.core.intervals import Interval
from otter_cli.data.labelled import LabelledText
from otter_cli.signals import SignalConfig
from otter_cli.training.objectives.labelled import LabelledObjective
from otter_cli.training.objectives.objective import Positions, Read, next_tokens, weighed_by_text
from otter_cli.training.objectives.pointwise import Loss, check_labels_vary, errors, value_metrics

if TYPE_CHECKING:
    from torch import Tensor

    from otter_cli.data.datasets import Batch, Labelled

# Rows of the vocabulary that are in memory at once.
_CHUNK = 1024


class TakenTokens(LabelledObjective, ABC):
    """Reads action values of the token that followed; a text's figure is that of its last."""

    kinds: ClassVar[tuple[str, ...]] = ("vocabulary",)

    def numbers(self, signal: SignalConfig) -> int:
        return 1

    def encode(self, rows: Sequence[LabelledText], tokenizer: Any, max_length: int) -> Labelled:
        encoded = super().encode(rows, tokenizer, max_length)
        if min(encoded.lengths) < 2:
            row = encoded.lengths.index(min(encoded.lengths))
            raise OtterError(
                f"text {row + 1} is a single token, and no state comes before it: "
                f"{rows[row].text[:40]!r}",
                hint="remove it, or set `eos: true`",
            )
        return encoded

    def check_rows(
        self, rows: Sequence[Any], signal: SignalConfig, what: str, *, tested: bool
    ) -> None:
        if tested:
            check_labels_vary([row.labels for row in rows], signal, what)

    def outcomes(self, read: Read, batch: Batch) -> dict[str, Tensor]:
        assert batch.labels is not None
        at, token = last_actions(batch)
        return {"value": read(batch, at, token), "label": batch.labels}

    def metrics(
        self, outcomes: Mapping[str, np.ndarray], signal: SignalConfig
    ) -> dict[str, Interval]:
        return value_metrics(outcomes["value"], outcomes["label"], ())


class ActionValues(TakenTokens):
    """`Q(y<t, y_t)` is to be the text's label, at every t, by weights that grow with t."""

    objective: Literal["action-values"] = "action-values"
    loss_of: Loss = "squared"

    def loss(self, read: Read, batch: Batch) -> Tensor:
        assert batch.labels is not None
        at, taken = next_tokens(batch)
        each = errors(self.loss_of, read(batch, at, taken), batch.labels[at[0]]).mean(-1)
        return weighed_by_text(each, at, batch.last - 1)

    def outcomes(self, read: Read, batch: Batch) -> dict[str, Tensor]:
        found = super().outcomes(read, batch)
        return found if self.loss_of == "squared" else {**found, "value": found["value"].sigmoid()}


class ActionConsistency(TakenTokens):
    """`Q(y<t, y_t) ~ max_v Q(y<=t, v)`, the label at the end (FaRMA, METHOD, 3): the maximum is a
    target, through which no gradient goes. `others` pulls tokens that were not taken to 0, at one
    place of each text: else the maximum is over values that nothing has ever said anything of."""

    objective: Literal["action-consistency"] = "action-consistency"
    others: NonNegativeFloat = 1.0

    def loss(self, read: Read, batch: Batch) -> Tensor:
        assert batch.labels is not None
        at, taken = next_tokens(batch)
        scores = read(batch, at, taken).squeeze(-1)
        target = _best_of_next(read, batch, at)
        ends = at[1] + 1 == batch.last[at[0]]
        target = ends * batch.labels[at[0], 0] + ~ends * target
        loss = weighed_by_text((scores - target) ** 2, at, batch.last - 1)
        return loss + self.others * other_tokens(read, batch) if self.others else loss


def last_actions(batch: Batch) -> tuple[Positions, Tensor]:
    """The state before each text's last token, and that token, [rows, 1]."""
    import torch

    rows = torch.arange(len(batch.last), device=batch.last.device)
    return (rows, batch.last - 1), batch.input_ids[rows, batch.last, None]


def _best_of_next(read: Read, batch: Batch, at: Positions) -> Tensor:
    """max over the vocabulary at the positions after `at`, [N]."""
    import torch

    rows, columns = at
    with torch.no_grad():
        pieces = zip(rows.split(_CHUNK), (columns + 1).split(_CHUNK), strict=True)
        return torch.cat([read(batch, piece).amax(-1) for piece in pieces])


def other_tokens(read: Read, batch: Batch) -> Tensor:
    """Mean square of all tokens but the one taken, at a random place of each text."""
    import torch

    rows = torch.arange(len(batch.last), device=batch.last.device)
    draw = torch.rand(len(rows), device=rows.device)
    columns = (draw * batch.last).long().clamp_max(batch.last - 1)
    squares = read(batch, (rows, columns)) ** 2
    taken = batch.input_ids[rows, columns + 1, None]
    return (squares.sum(-1) - squares.gather(-1, taken).squeeze(-1)).mean() / (
        squares.shape[-1] - 1
    )
