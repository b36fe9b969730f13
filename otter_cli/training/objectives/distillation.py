"""Action values by distilling a teacher of state values: `Q(y<t, v) ~ teacher(y<t + v)` (RAD-Q)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import NonNegativeFloat

from otter_cli.data.paths import find_data
from otter_cli.data.records import Place
from otter_cli.signals import SignalConfig
from otter_cli.training.objectives.action_values import TakenTokens, last_actions, other_tokens
from otter_cli.training.objectives.labelled import LabelledSource
from otter_cli.training.objectives.objective import Read, next_tokens, weighed_by_text
from otter_cli.training.teacher import teacher_values

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from otter_cli.data.datasets import Batch
    from otter_cli.data.labelled import LabelledText


class Distillation(TakenTokens):
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
        self, source: LabelledSource, path: Place, signal: SignalConfig
    ) -> Sequence[LabelledText]:
        """Texts alone: the teacher has the labels."""
        from otter_cli.data.labelled import LabelledText
        from otter_cli.data.plain import read_texts

        texts = read_texts(path, column=source.text, prompt=source.prompt)
        return [LabelledText(text, (0.0,)) for text in texts]

    def check_rows(
        self, rows: Sequence[Any], signal: SignalConfig, what: str, *, tested: bool
    ) -> None:
        """The rows have no labels yet."""
        return

    def loss(self, read: Read, batch: Batch) -> Tensor:
        at, taken = next_tokens(batch)
        rows, columns = at
        target = self._teach(batch)[rows, columns + 1]
        each = (read(batch, at, taken).squeeze(-1) - target) ** 2
        loss = weighed_by_text(each, at, batch.last - 1)
        return loss + self.others * other_tokens(read, batch) if self.others else loss

    def outcomes(self, read: Read, batch: Batch) -> dict[str, Tensor]:
        at, token = last_actions(batch)
        target = self._teach(batch)[at[0], batch.last]
        return {"value": read(batch, at, token), "label": target[:, None]}

    def _teach(self, batch: Batch) -> Tensor:
        return teacher_values(find_data(self.teacher), self.teacher_signal, batch)
