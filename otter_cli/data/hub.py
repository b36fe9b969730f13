"""Datasets of the hub, or folders in its layout, by id, split and revision."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from otter_cli.core.errors import OtterError
from otter_cli.core.library_errors import library_reads
from otter_cli.data.records import Record

_HINT = "check id, subset, split and revision, and whether the hub can be reached"


@dataclass(frozen=True)
class HubTable:
    """One split of a dataset. `subset`: its configuration, where it has several."""

    dataset: str
    split: str
    revision: str | None = None
    subset: str | None = None

    def __str__(self) -> str:
        return f"{self.dataset}, split {self.split}"

    def records(self) -> Iterator[Record]:
        """Raises OtterError for what is not there, and for an id without a revision."""
        if self.revision is None and not Path(self.dataset).is_dir():
            raise OtterError(
                f"dataset {self.dataset!r} has no revision",
                hint="give a commit or a tag: what its main branch holds may change (a folder in "
                "the hub's layout needs none)",
            )
        import datasets

        with library_reads(f"dataset {self}", "it", library="datasets", hint=_HINT):
            rows = datasets.load_dataset(
                self.dataset, self.subset, split=self.split, revision=self.revision
            )
            for number, values in enumerate(rows, 1):
                yield Record(self, number, values, "row")
