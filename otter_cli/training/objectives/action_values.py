"""Objectives of action values Q(y<t, v): from labels of whole texts, by consistency of each state
with the next one, or by distilling a teacher of state values (RAD-Q)."""

from __future__ import annotations

from abc import ABC
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import NonNegativeFloat

from otter_cli.core.errors import OtterError
from otter_cli.core.intervals import Interval
from otter_cli.data.batches import Positions, next_tokens, weighted_mean_over_texts
from otter_cli.data.tables import TableLike, find_data
from otter_cli.data.texts import LabelledText, read_texts
from otter_cli.scorers.text_scorer import prefix_values
from otter_cli.signals.config import SignalConfig
from otter_cli.training.objectives.labelled import (
    LabelledObjective,
    LabelledSource,
    ValueLoss,
    check_labels_vary,
    value_errors,
    value_metrics,
)
from otter_cli.training.objectives.objective import Outcomes, ReadSignal

if TYPE_CHECKING:
    from torch import Tensor

    from otter_cli.data.datasets import Batch, LabelledDataset


# Positions whose values of the whole vocabulary are in memory at once.
_ROWS_AT_ONCE = 1024


class TakenTokenObjective(LabelledObjective, ABC):
    """Reads the action value of each token that was taken. A text's outcome is its last token's."""

    kinds: ClassVar[tuple[str, ...]] = ("vocabulary",)

    def label_count(self, signal: SignalConfig) -> int:
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

    def check_test_rows(self, rows: Sequence[Any], signal: SignalConfig, what: str) -> None:
        check_labels_vary([row.labels for row in rows], signal, what)

    def outcomes(self, read: ReadSignal, batch: Batch) -> dict[str, Tensor]:
        assert batch.labels is not None
        at, token = last_actions(batch)
        return {"value": read(batch, at, token), "label": batch.labels}

    def metrics(self, outcomes: Outcomes, signal: SignalConfig) -> dict[str, Interval]:
        return value_metrics(outcomes["value"], outcomes["label"], ())


class ActionValues(TakenTokenObjective):
    """`Q(y<t, y_t)` is trained to be the text's label, at every t with growing weights."""

    objective: Literal["action-values"] = "action-values"
    loss_of: ValueLoss = "squared"

    def loss(self, read: ReadSignal, batch: Batch) -> Tensor:
        assert batch.labels is not None
        at, taken = next_tokens(batch)
        each = value_errors(self.loss_of, read(batch, at, taken), batch.labels[at[0]]).mean(-1)
        return weighted_mean_over_texts(each, at, batch.last - 1)

    def outcomes(self, read: ReadSignal, batch: Batch) -> dict[str, Tensor]:
        outcomes = super().outcomes(read, batch)
        if self.loss_of == "squared":
            return outcomes
        return {**outcomes, "value": outcomes["value"].sigmoid()}


class ActionConsistency(TakenTokenObjective):
    """`Q(y<t, y_t) ~ max_v Q(y<=t, v)`, and the label at the end (FaRMA; docs/method.md,
    "Objectives"). No gradient goes through the maximum. `others`: the weight that pulls tokens that
    were not taken to 0, at one position of each text; otherwise the maximum would run over values
    that no loss ever trained."""

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
    """The maximum over the vocabulary at the positions after `at`, [N], without a graph."""
    import torch

    rows, columns = at
    with torch.no_grad():
        pieces = zip(rows.split(_ROWS_AT_ONCE), (columns + 1).split(_ROWS_AT_ONCE), strict=True)
        return torch.cat([read(batch, piece).amax(-1) for piece in pieces])


def other_token_penalty(read: ReadSignal, batch: Batch) -> Tensor:
    """Mean square of all action values but the taken token's, at a random position of each text."""
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
    """Squared error to a teacher of state values at the tokens that were taken (RAD-Q). All other
    tokens are pulled to 0 with weight `others`, at one position of each text, since nothing else
    trains them.

    `teacher`: a grafted folder with a signal of kind value (`teacher_signal`), or a reward model.
    """

    objective: Literal["distillation"] = "distillation"
    teacher: str
    teacher_signal: str = "reward"
    others: NonNegativeFloat = 0.1

    def check(self, signal: SignalConfig) -> None:
        super().check(signal)
        find_data(self.teacher)

    def read_rows(
        self, source: LabelledSource, table: TableLike, signal: SignalConfig
    ) -> Sequence[LabelledText]:
        """Texts alone: the labels come from the teacher."""
        texts = read_texts(table, column=source.text, prompt=source.prompt)
        return [LabelledText(text, (0.0,)) for text in texts]

    def check_test_rows(self, rows: Sequence[Any], signal: SignalConfig, what: str) -> None:
        """The rows have no labels yet."""

    def loss(self, read: ReadSignal, batch: Batch) -> Tensor:
        at, taken = next_tokens(batch)
        rows, columns = at
        target = self._teacher_values(batch)[rows, columns + 1]
        each = (read(batch, at, taken).squeeze(-1) - target) ** 2
        loss = weighted_mean_over_texts(each, at, batch.last - 1)
        return loss + self.others * other_token_penalty(read, batch) if self.others else loss

    def outcomes(self, read: ReadSignal, batch: Batch) -> dict[str, Tensor]:
        at, token = last_actions(batch)
        target = self._teacher_values(batch)[at[0], batch.last]
        return {"value": read(batch, at, token), "label": target[:, None]}

    def _teacher_values(self, batch: Batch) -> Tensor:
        return prefix_values(find_data(self.teacher), self.teacher_signal, batch)
