"""What objectives of plain text have in common: a column, and blocks of joined texts."""

from __future__ import annotations

from abc import ABC
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from otter_cli.data.columns import Rows, usual_text
from otter_cli.data.plain import read_texts
from otter_cli.data.records import Place
from otter_cli.signals import SignalConfig
from otter_cli.training.objectives.objective import Objective, Source

if TYPE_CHECKING:
    from otter_cli.data.datasets import Blocks


class TextSource(Source):
    """Plain text: the paragraphs of a .txt file, or a column of rows; `prompt`: a column before
    it."""

    column: str = "text"
    prompt: str | None = None

    @property
    def texts(self) -> tuple[str, ...]:
        return (self.column,)

    @property
    def context(self) -> str | None:
        return self.prompt

    def usual(self, rows: Rows, signal: SignalConfig) -> dict[str, Any]:
        return usual_text("column", self.model_fields_set, rows)


class PlainTexts(Objective, ABC):
    """Reads texts, joined end to end and cut into blocks of the recipe's `max_length`."""

    train: TextSource
    test: TextSource | None = None

    @property
    def sources(self) -> tuple[TextSource, TextSource | None]:
        return self.train, self.test

    def rows(self, source: TextSource, path: Place, signal: SignalConfig) -> Sequence[str]:
        return read_texts(path, column=source.column, prompt=source.prompt)

    def encode(self, rows: Sequence[str], tokenizer: Any, max_length: int) -> Blocks:
        from otter_cli.data.datasets import Blocks

        return Blocks(rows, tokenizer, max_length, eos=self.eos)
