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
from otter_cli.data.columns import SampledRows, holds_messages, usual_text
from otter_cli.data.tables import HubTable, TableLike, find_data
from otter_cli.graft.manifest import TrainedPositions
from otter_cli.signals.config import SignalConfig

if TYPE_CHECKING:
    from torch import Tensor

    from otter_cli.data.datasets import Batch, Dataset


# What metrics need of each row, [rows, ...] by name.
Outcomes = Mapping[str, np.ndarray]


class ReadSignal(Protocol):
    """Reads the signal at N positions, [N, ...]. With `tokens` [N, k]: action values of these k
    tokens, [N, k]; or future tokens after these k. The model runs once for a batch."""

    def __call__(self, batch: Batch, at: Positions, tokens: Tensor | None = None) -> Tensor: ...


@runtime_checkable
class ReadSignalWithBase(ReadSignal, Protocol):
    """Reads the signal of a stream beside the base, and the base's own logits."""

    signal: SignalConfig

    def base_logits(self, batch: Batch, at: Positions) -> Tensor:
        """The base's next-token logits at N positions, [N, vocab]."""


@runtime_checkable
class ReadSignalSelected(ReadSignal, Protocol):
    def at_positions_only(self, batch: Batch, at: Positions) -> Tensor:
        """The signal at N positions, [N, ...], by a forward that leaves out all work that only
        other positions need."""


class DataSource(StrictConfig):
    """A data file (`path`), or a `dataset` of the hub by its id, split and revision. Columns have
    the names that the source gives, or usual ones (`data.columns`). With `chat` they hold messages,
    which the tokenizer's template turns into text; it is the default where they do. `limit`: this
    many rows, drawn by `limit_seed` across categories."""

    # The keys that name columns of texts.
    text_keys: ClassVar[tuple[str, ...]] = ("text",)

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
    def text_columns(self) -> tuple[str, ...]:
        """The columns that hold texts, or messages."""
        return tuple(getattr(self, key) for key in self.text_keys)

    @property
    def prompt_column(self) -> str | None:
        """The column that is put before each of these."""
        return getattr(self, "prompt", None)

    def read_columns(self, signal: SignalConfig) -> tuple[str, ...]:
        """Every column that is read."""
        return (*self.text_columns, *((self.prompt_column,) if self.prompt_column else ()))

    def table(self, folder: Path | None) -> TableLike:
        """The whole table. Raises OtterError for a file that does not exist."""
        if self.path is not None:
            return find_data(self.path, folder)
        return HubTable(str(self.dataset), self.split, self.revision, self.subset)

    def with_default_columns(self, rows: SampledRows, signal: SignalConfig) -> Self:
        """The source with usual names for the columns that it does not name, by a sample of the
        rows. Raises OtterError where two columns could be meant."""
        source = self.model_copy(update=self.default_columns(rows, signal))
        if "chat" not in self.model_fields_set:
            chat = any(holds_messages(column, rows) for column in source.text_columns)
            source = source.model_copy(update={"chat": chat})
        return source

    def default_columns(self, rows: SampledRows, signal: SignalConfig) -> dict[str, Any]:
        """Columns by key, for the keys that this source does not give."""
        return usual_text(self.text_keys[0], self.model_fields_set, rows)

    def rendered_table(self, table: TableLike, tokenizer: Any) -> TableLike:
        """The table; where it holds messages, with the texts that the template makes of them."""
        if not self.chat:
            return table
        return ChatTable(table, tokenizer, self.text_columns, self.prompt_column)


class TextSource(DataSource):
    """Texts without labels. `prompt`: a column before each text."""

    text: str = "text"
    prompt: str | None = None


class Objective(StrictConfig, ABC):
    """Section `signals.NAME`. `test` takes from `train` the columns that it does not name."""

    # The kinds of signals that it trains.
    kinds: ClassVar[tuple[str, ...]]

    objective: str
    weight: PositiveFloat = 1.0
    batch_size: PositiveInt | None = None
    eos: bool = True
    # Instead of a test file: this share of the training rows, chosen by their text.
    held_out: float | None = Field(default=None, gt=0, lt=1)
    # The share of the training rows that chooses the best step. Test rows must not choose it.
    validation: float | None = Field(default=None, gt=0, lt=1)
    train: DataSource
    test: DataSource | None = None

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

    def unused_parameters(self, signal: SignalConfig) -> tuple[str, ...]:
        """The parts of the head that the loss does not depend on. They are not trained."""
        return ()

    @property
    def trained_positions(self) -> TrainedPositions:
        """At which tokens of a text the loss reads the signal."""
        positions: TrainedPositions = getattr(self, "positions", "every")
        return positions

    @abstractmethod
    def read_rows(self, source: Any, table: TableLike, signal: SignalConfig) -> Sequence[Any]:
        """The rows of a table. Raises OtterError, with file and line, for unusable rows."""

    def check_test_rows(self, rows: Sequence[Any], signal: SignalConfig, what: str) -> None:
        """Raises OtterError where a metric is undefined on rows for testing or validation, whatever
        the signal predicts. It runs before the first step."""
        return

    @abstractmethod
    def encode(self, rows: Sequence[Any], tokenizer: Any, max_length: int) -> Dataset: ...

    def prepare_targets(self, datasets: Sequence[Any], folder: Path, device: str) -> dict[str, Any]:
        """Computes the targets that encoded data lacks, with the base of the graft in `folder`, and
        returns what the data's record says of them. If interrupted, the next call continues."""
        return {}

    @abstractmethod
    def loss(self, read: ReadSignal, batch: Batch) -> Tensor:
        """A scalar with a graph to the trained parameters."""

    @abstractmethod
    def outcomes(self, read: ReadSignal, batch: Batch) -> dict[str, Tensor]:
        """What the metrics need of each row, [rows, ...]."""

    @abstractmethod
    def metrics(self, outcomes: Outcomes, signal: SignalConfig) -> dict[str, Interval]: ...

    def check(self, signal: SignalConfig) -> None:
        """Raises OtterError where this objective cannot train such a signal."""
        if signal.kind not in self.kinds:
            raise OtterError(
                f"signal {signal.name!r} is of kind {signal.kind}; "
                f"{self.objective} trains {', '.join(self.kinds)}",
                hint="choose another objective, or graft the signal as another kind",
            )


def read_selected(read: ReadSignal, batch: Batch, at: Positions) -> Tensor:
    """The signal at N positions, [N, ...], for a loss that reads nothing else of the batch."""
    if isinstance(read, ReadSignalSelected):
        return read.at_positions_only(batch, at)
    return read(batch, at)


def unused_by_softmax(signal: SignalConfig) -> tuple[str, ...]:
    """A low-rank head's terms that are equal for all tokens. No softmax depends on them."""
    return ("base", "inserted", "bias") if signal.size else ()
