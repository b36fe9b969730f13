"""Objectives of action values Q(y<t, v): from labels of whole texts, by consistency of each state
with the next one, or by distilling a teacher of state values (RAD-Q)."""

from __future__ import annotations

from abc import ABC
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from pydantic import NonNegativeFloat

from otter_cli.core.errors import OtterError
from otter_cli.core.intervals import Interval
from otter_cli.data.batches import Positions, next_tokens, weighted_mean_over_texts
from otter_cli.data.tables import TableLike, find_data
from otter_cli.data.texts import LabelledText
from otter_cli.scorers.labeller import prefix_values
from otter_cli.signals.config import SignalConfig
from otter_cli.training.objectives.labelled import (
    LabelledObjective,
    LabelledSource,
    ValueLoss,
    check_labels_vary,
    value_errors,
    value_metrics,
)
from otter_cli.training.objectives.objective import ReadSignal

if TYPE_CHECKING:
    from torch import Tensor

    from otter_cli.data.datasets import Batch, LabelledDataset


# Rows of the vocabulary that are in memory at once.
_ROWS_AT_ONCE = 1024


class TakenTokenObjective(LabelledObjective, ABC):
    """Reads action values of the token that followed; a text's figure is that of its last."""

    kinds: ClassVar[tuple[str, ...]] = ("vocabulary",)

    def numbers(self, signal: SignalConfig) -> int:
        return 1

    def encode(
        self, rows: Sequence[LabelledText], tokenizer: Any, max_length: int
    ) -> LabelledDataset:
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

    def outcomes(self, read: ReadSignal, batch: Batch) -> dict[str, Tensor]:
        assert batch.labels is not None
        at, token = last_actions(batch)
        return {"value": read(batch, at, token), "label": batch.labels}

    def metrics(
        self, outcomes: Mapping[str, np.ndarray], signal: SignalConfig
    ) -> dict[str, Interval]:
        return value_metrics(outcomes["value"], outcomes["label"], ())


class ActionValues(TakenTokenObjective):
    """`Q(y<t, y_t)` is to be the text's label, at every t, by weights that grow with t."""

    objective: Literal["action-values"] = "action-values"
    loss_of: ValueLoss = "squared"

    def loss(self, read: ReadSignal, batch: Batch) -> Tensor:
        assert batch.labels is not None
        at, taken = next_tokens(batch)
        each = value_errors(self.loss_of, read(batch, at, taken), batch.labels[at[0]]).mean(-1)
        return weighted_mean_over_texts(each, at, batch.last - 1)

    def outcomes(self, read: ReadSignal, batch: Batch) -> dict[str, Tensor]:
        found = super().outcomes(read, batch)
        return found if self.loss_of == "squared" else {**found, "value": found["value"].sigmoid()}


class ActionConsistency(TakenTokenObjective):
    """`Q(y<t, y_t) ~ max_v Q(y<=t, v)`, the label at the end (FaRMA, METHOD, 3): the maximum is a
    target, through which no gradient goes. `others` pulls tokens that were not taken to 0, at one
    place of each text: else the maximum is over values that nothing has ever said anything of."""

    objective: Literal["action-consistency"] = "action-consistency"
    others: NonNegativeFloat = 1.0

    def loss(self, read: ReadSignal, batch: Batch) -> Tensor:
        assert batch.labels is not None
        at, taken = next_tokens(batch)
        scores = read(batch, at, taken).squeeze(-1)
        target = _max_next_value(read, batch, at)
        ends = at[1] + 1 == batch.last[at[0]]
        target = ends * batch.labels[at[0], 0] + ~ends * target
        loss = weighted_mean_over_texts((scores - target) ** 2, at, batch.last - 1)
        return loss + self.others * other_token_penalty(read, batch) if self.others else loss


def last_actions(batch: Batch) -> tuple[Positions, Tensor]:
    """The state before each text's last token, and that token, [rows, 1]."""
    import torch

    rows = torch.arange(len(batch.last), device=batch.last.device)
    return (rows, batch.last - 1), batch.input_ids[rows, batch.last, None]


def _max_next_value(read: ReadSignal, batch: Batch, at: Positions) -> Tensor:
    """max over the vocabulary at the positions after `at`, [N]."""
    import torch

    rows, columns = at
    with torch.no_grad():
        pieces = zip(rows.split(_ROWS_AT_ONCE), (columns + 1).split(_ROWS_AT_ONCE), strict=True)
        return torch.cat([read(batch, piece).amax(-1) for piece in pieces])


def other_token_penalty(read: ReadSignal, batch: Batch) -> Tensor:
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


class Distillation(TakenTokenObjective):
    """Squared error to the teacher at the tokens that were taken; what nobody said is pulled to 0:
    at one place of each text all other tokens, with weight `others`, since taken tokens alone leave
    the rest of the vocabulary open.

    `teacher`: a grafted folder with a signal of kind value (`teacher_signal`), or a reward model.
    """

    objective: Literal["distillation"] = "distillation"
    teacher: str
    teacher_signal: str = "reward"
    others: NonNegativeFloat = 0.1

    def check(self, signal: SignalConfig) -> None:
        super().check(signal)
        find_data(self.teacher)

    def rows(
        self, source: LabelledSource, path: TableLike, signal: SignalConfig
    ) -> Sequence[LabelledText]:
        """Texts alone: the teacher has the labels."""
        from otter_cli.data.texts import LabelledText, read_texts

        texts = read_texts(path, column=source.text, prompt=source.prompt)
        return [LabelledText(text, (0.0,)) for text in texts]

    def check_rows(
        self, rows: Sequence[Any], signal: SignalConfig, what: str, *, tested: bool
    ) -> None:
        """The rows have no labels yet."""
        return

    def loss(self, read: ReadSignal, batch: Batch) -> Tensor:
        at, taken = next_tokens(batch)
        rows, columns = at
        target = self._teach(batch)[rows, columns + 1]
        each = (read(batch, at, taken).squeeze(-1) - target) ** 2
        loss = weighted_mean_over_texts(each, at, batch.last - 1)
        return loss + self.others * other_token_penalty(read, batch) if self.others else loss

    def outcomes(self, read: ReadSignal, batch: Batch) -> dict[str, Tensor]:
        at, token = last_actions(batch)
        target = self._teach(batch)[at[0], batch.last]
        return {"value": read(batch, at, token), "label": target[:, None]}

    def _teach(self, batch: Batch) -> Tensor:
        return prefix_values(find_data(self.teacher), self.teacher_signal, batch)
