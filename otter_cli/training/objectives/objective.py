"""What an objective is: a recipe's section for one signal, which reads data and gives a loss.

Torch is imported where tensors are made, so recipes are read and refused without it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, Self, runtime_checkable

import numpy as np
from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from otter_cli.core.errors import OtterError
from otter_cli.core.intervals import Interval
from otter_cli.core.strict_config import StrictConfig
from otter_cli.data.batches import Positions
from otter_cli.data.chat_template import ChatTable
from otter_cli.data.columns import SampledRows, holds_messages
from otter_cli.data.tables import HubTable, TableLike, find_data
from otter_cli.graft.manifest import TrainedPositions
from otter_cli.signals.config import SignalConfig

if TYPE_CHECKING:
    from torch import Tensor

    from otter_cli.data.datasets import Batch, Dataset


class ReadSignal(Protocol):
    """The signal at N positions, [N, ...]; of action values also of k tokens at each, [N, k], and
    future tokens where k are given that follow. A batch that is read twice is run once."""

    def __call__(self, batch: Batch, at: Positions, tokens: Tensor | None = None) -> Tensor: ...


@runtime_checkable
class ReadSignalWithBase(ReadSignal, Protocol):
    """Reads `signal` of a stream beside the base, and so the base itself too."""

    signal: SignalConfig

    def base_logits(self, batch: Batch, at: Positions) -> Tensor:
        """What the base says of the next token at N positions, [N, vocab]."""


@runtime_checkable
class ReadSignalSelected(ReadSignal, Protocol):
    def alone(self, batch: Batch, at: Positions) -> Tensor:
        """The signal at N positions, [N, ...], by a run of the batch that ends at these."""


class DataSource(StrictConfig):
    """A data file (`path`), or a `dataset` of the hub by its id, split and revision; what its
    columns are called, an objective's own source says, or their usual names (`data.columns`). With
    `chat` they hold messages, which the tokenizer's template makes a text of; it need not be
    written where they do. `limit`: so many rows, drawn by `limit_seed` across categories."""

    path: str | None = None
    dataset: str | None = None
    subset: str | None = None
    split: str = "train"
    revision: str | None = None
    limit: PositiveInt | None = None
    limit_seed: NonNegativeInt = 0
    chat: bool = False

    @model_validator(mode="after")
    def _one_place(self) -> Self:
        if (self.path is None) == (self.dataset is None):
            raise ValueError("give path (a file) or dataset (an id of the hub), one of them")
        return self

    @property
    def name(self) -> str:
        return self.path or str(self.dataset)

    @property
    def texts(self) -> tuple[str, ...]:
        """The columns that are texts, or messages."""
        return ()

    @property
    def context(self) -> str | None:
        """The column that is put before each of these."""
        return None

    def used(self, signal: SignalConfig) -> tuple[str, ...]:
        """Every column that is read."""
        return (*self.texts, *((self.context,) if self.context else ()))

    def table(self, folder: Path | None) -> TableLike:
        """The whole table. Raises OtterError for a file that is not there."""
        if self.path is not None:
            return find_data(self.path, folder)
        return HubTable(str(self.dataset), self.split, self.revision, self.subset)

    def resolved(self, rows: SampledRows, signal: SignalConfig) -> Self:
        """The same with usual names for columns that it does not name, by a sample of the rows.
        Raises OtterError where two columns could be meant."""
        found = self.model_copy(update=self.usual(rows, signal))
        if "chat" not in self.model_fields_set:
            chat = any(holds_messages(column, rows) for column in found.texts)
            found = found.model_copy(update={"chat": chat})
        return found

    def usual(self, rows: SampledRows, signal: SignalConfig) -> dict[str, Any]:
        """Columns by their keys, of those that this source does not name itself."""
        return {}

    def place(self, table: TableLike, tokenizer: Any) -> TableLike:
        """The table, or where it holds messages the texts that the template makes of them."""
        return ChatTable(table, tokenizer, self.texts, self.context) if self.chat else table


class Objective(StrictConfig, ABC):
    """Section `signals.NAME`. `test` takes from `train` the columns that it does not name."""

    kinds: ClassVar[tuple[str, ...]]

    objective: str
    weight: PositiveFloat = 1.0
    batch_size: PositiveInt | None = None
    eos: bool = True
    # Instead of a test file: this share of the training rows, chosen by their text.
    held_out: float | None = Field(default=None, gt=0, lt=1)
    # The share of the training rows that choose the best step: what is tested must not.
    validation: float | None = Field(default=None, gt=0, lt=1)

    @model_validator(mode="before")
    @classmethod
    def _test_like_train(cls, values: Any) -> Any:
        if not isinstance(values, dict) or not isinstance(values.get("test"), dict):
            return values
        train = values.get("train")
        columns = dict(train) if isinstance(train, dict) else {}
        elsewhere = {"dataset", "subset", "split", "revision"}
        dropped = elsewhere if "path" in values["test"] else {"path"}
        if "path" in columns and not elsewhere & values["test"].keys():
            dropped = elsewhere
        for key in {"limit", "limit_seed", *dropped}:
            columns.pop(key, None)
        return {**values, "test": {**columns, **values["test"]}}

    def untouched(self, signal: SignalConfig) -> tuple[str, ...]:
        """Parts of the head that the loss cannot see: they stay what they were."""
        return ()

    @property
    def trained_at(self) -> TrainedPositions:
        """At which tokens of a text the loss reads the signal."""
        positions: TrainedPositions = getattr(self, "positions", "every")
        return positions

    @property
    @abstractmethod
    def sources(self) -> tuple[DataSource, DataSource | None]:
        """Training and test data."""

    @abstractmethod
    def rows(self, source: Any, path: TableLike, signal: SignalConfig) -> Sequence[Any]:
        """The rows of a table. Raises OtterError, with file and line, for what cannot be used."""

    def check_rows(
        self, rows: Sequence[Any], signal: SignalConfig, what: str, *, tested: bool
    ) -> None:
        """Raises OtterError where a metric of this objective is undefined on the rows that are
        `tested`, whatever the signal says of them: before the first step, not after it."""
        return

    @abstractmethod
    def encode(self, rows: Sequence[Any], tokenizer: Any, max_length: int) -> Dataset: ...

    def prepare(self, datasets: Sequence[Any], folder: Path, device: str) -> dict[str, Any]:
        """Computes what encoded data still lack, with the base of a graft; what the record of the
        data says of it. Begun again, it goes on."""
        return {}

    @abstractmethod
    def loss(self, read: ReadSignal, batch: Batch) -> Tensor:
        """A scalar with a graph to whatever `read` trains."""

    @abstractmethod
    def outcomes(self, read: ReadSignal, batch: Batch) -> dict[str, Tensor]:
        """What the metrics need of each row, [rows, ...]."""

    @abstractmethod
    def metrics(
        self, outcomes: Mapping[str, np.ndarray], signal: SignalConfig
    ) -> dict[str, Interval]: ...

    def check(self, signal: SignalConfig) -> None:
        """Raises OtterError where this objective cannot train such a signal."""
        if signal.kind not in self.kinds:
            raise OtterError(
                f"signal {signal.name!r} is of kind {signal.kind}; "
                f"{self.objective} trains {', '.join(self.kinds)}",
                hint="choose another objective, or graft the signal as another kind",
            )


def read_selected(read: ReadSignal, batch: Batch, at: Positions) -> Tensor:
    """The signal at N positions, [N, ...], where nothing else of the batch is read, so that what
    can be left out at other positions is."""
    return read.alone(batch, at) if isinstance(read, ReadSignalSelected) else read(batch, at)
