"""What objectives of labelled texts have in common: columns, checks, encoding."""

from __future__ import annotations

from abc import ABC
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pydantic import field_validator

from otter_cli.core.errors import OtterError
from otter_cli.data.columns import LABELS, Rows, column_names, usual_column, usual_text
from otter_cli.data.labelled import LabelledText, read_labelled
from otter_cli.data.records import Place
from otter_cli.signals import SignalConfig
from otter_cli.training.objectives.objective import Objective, Source

if TYPE_CHECKING:
    from otter_cli.data.datasets import Labelled


class LabelledSource(Source):
    """Columns of labelled text: by default the labels are columns named as the signal's are, or one
    column with a usual name. Of a signal with several classes one column may say which: by name,
    by number from 0, as a truth value, or as a list of names.

    `mapping` turns a column's values into numbers: {"0": 1, "1": 1, "2": 0}. `prompt`: a column
    that is put before the text.
    """

    text: str = "text"
    prompt: str | None = None
    labels: tuple[str, ...] | None = None
    mapping: dict[str, float | tuple[float, ...]] | None = None

    @property
    def beginning(self) -> str | None:
        """The column that says from which character on the labels hold."""
        return None

    @property
    def texts(self) -> tuple[str, ...]:
        return (self.text,)

    @property
    def context(self) -> str | None:
        return self.prompt

    def used(self, signal: SignalConfig) -> tuple[str, ...]:
        labels = self.labels or signal.labels or (signal.name,)
        return (*super().used(signal), *labels, *((self.beginning,) if self.beginning else ()))

    def usual(self, rows: Rows, signal: SignalConfig) -> dict[str, Any]:
        found = usual_text("text", self.model_fields_set, rows)
        own = {signal.name, *signal.labels}
        if self.labels is None and not own & set(column_names(rows)):
            label = usual_column("labels", LABELS, rows, text=False)
            return found if label is None else {**found, "labels": (label,)}
        return found

    @field_validator("mapping", mode="before")
    @classmethod
    def _keys_are_texts(cls, mapping: Any) -> Any:
        # YAML reads `0: 1` as a number; a file's column has the text "0".
        return {str(key): v for key, v in mapping.items()} if isinstance(mapping, dict) else mapping


class LabelledObjective(Objective, ABC):
    """Reads texts with as many numbers as the signal has attributes or classes."""

    train: LabelledSource
    test: LabelledSource | None = None

    @property
    def sources(self) -> tuple[LabelledSource, LabelledSource | None]:
        return self.train, self.test

    def numbers(self, signal: SignalConfig) -> int:
        """How many labels a text has."""
        return signal.size

    def rows(
        self, source: LabelledSource, path: Place, signal: SignalConfig
    ) -> Sequence[LabelledText]:
        rows = read_labelled(
            path,
            text=source.text,
            prompt=source.prompt,
            labels=source.labels or signal.labels or (signal.name,),
            mapping=source.mapping,
            classes=signal.labels if signal.kind == "classes" else (),
            since=source.beginning,
        )
        found, wanted = len(rows[0].labels), self.numbers(signal)
        if found != wanted:
            raise OtterError(
                f"{path}: {found} labels a text; signal {signal.name!r} has {wanted}: "
                + ", ".join(signal.labels or (signal.name,)),
                hint="name as many label columns (or mapped numbers) as the signal has classes",
            )
        return rows

    def encode(self, rows: Sequence[LabelledText], tokenizer: Any, max_length: int) -> Labelled:
        from otter_cli.data.datasets import Labelled
        from otter_cli.data.encoding import Encoder

        return Labelled(rows, Encoder(tokenizer, max_length, eos=self.eos))
