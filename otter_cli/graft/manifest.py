"""otter.json: what was inserted into which base, and how each signal was trained.

A reward that was trained at the last token of whole texts means nothing before a text has ended.
`untrained_position_warnings` says where a signal is read outside its training.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, ValidationError

from otter_cli.checkpoint.folder import MANIFEST, refuse_gguf
from otter_cli.core.atomic import write_json
from otter_cli.core.errors import OtterError
from otter_cli.core.strict_config import StrictRecord
from otter_cli.core.strict_files import (
    is_printable,
    parse_json_object,
    quoted,
    read_small_file,
    resolve_inside,
)
from otter_cli.families.shape import BaseShape
from otter_cli.graft.config import InsertionConfig
from otter_cli.graft.plan import Plan
from otter_cli.graft.storage import InsertedRecord, check_inserted_digests

MANIFEST_SCHEMA_VERSION = 1
_MAX_INSERTIONS = 1024
_DAMAGED_HINT = "graft the base again, or restore the file"


class FileRecord(StrictRecord):
    """Size and digest of one file when it was grafted."""

    bytes: int = Field(ge=0)
    sha256: str


class BaseRecord(StrictRecord):
    """The base that was grafted: where it came from, and every file of it."""

    source: str
    revision: str | None = None
    family: str
    parameters: int
    dtype: str
    files: dict[str, FileRecord]

    def identity(self) -> dict[str, FileRecord]:
        """The files that distinguish this base from any other: weights and configurations."""
        suffixes = (".safetensors", "config.json", ".index.json")
        return {name: record for name, record in self.files.items() if name.endswith(suffixes)}


# Where a signal was trained: at the last token of each text, at every token, or at drawn tokens.
LAST_TOKEN = "last"
TrainedPositions = Literal["last", "every", "drawn"]


class TrainingRecord(StrictRecord):
    """How a signal was trained: enough to say whether its values mean anything.

    `positions`: at which tokens. `end`: whether texts had an end token. Both are None in older
    records.
    """

    steps: int
    seed: int
    objective: str
    recipe_sha256: str
    data: dict[str, Any] = Field(default_factory=dict)
    metrics: dict[str, Any] = Field(default_factory=dict)
    positions: TrainedPositions | None = None
    end: bool | None = None


class Manifest(StrictRecord):
    """The whole of otter.json."""

    schema_version: int = Field(default=MANIFEST_SCHEMA_VERSION, ge=1)
    base: BaseRecord
    insertions: list[InsertionConfig] = Field(max_length=_MAX_INSERTIONS)
    inserted: InsertedRecord
    training: dict[str, TrainingRecord] = Field(default_factory=dict)
    provenance: list[dict[str, Any]] = Field(default_factory=list)

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Raises OtterError where the folder has none, or it is damaged or of a later version."""
        refuse_gguf(folder)
        path = folder / MANIFEST
        _refuse_missing_manifest(folder)
        data = read_small_file(resolve_inside(folder, MANIFEST), where=str(path))
        parse_json_object(data, str(path))
        try:
            manifest = cls.model_validate_json(data)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"]) or "the file"
            raise OtterError(
                f"{path} is damaged: {where if is_printable(where) else quoted(where)}: "
                f"{first['msg']}",
                hint=_DAMAGED_HINT,
            ) from None
        if manifest.schema_version > MANIFEST_SCHEMA_VERSION:
            raise OtterError(
                f"{path} has schema version {manifest.schema_version}; "
                f"this otter reads up to {MANIFEST_SCHEMA_VERSION}",
                hint="update otter",
            )
        for name in manifest.base.files:
            if not is_printable(name):
                raise OtterError(
                    f"{path} is damaged: {quoted(name)} is no file name", hint=_DAMAGED_HINT
                )
        return manifest

    def write(self, folder: Path) -> None:
        write_json(folder / MANIFEST, self.model_dump(mode="json"))

    def plans(self, shape: BaseShape) -> list[Plan]:
        """The plan of each insertion. Raises OtterError where one does not fit the base."""
        return [Plan(config, shape) for config in self.insertions]

    def check_tensors(self, folder: Path) -> None:
        """Raises OtterError unless the inserted tensors in `folder` have the recorded digest."""
        check_inserted_digests(folder, (self.inserted.sha256, self.inserted.previous_sha256))


def _refuse_missing_manifest(folder: Path) -> None:
    if not folder.exists():
        raise OtterError(f"{folder} does not exist", hint="check the path")
    if not folder.is_dir():
        raise OtterError(f"{folder} is not a folder", hint="give the grafted folder")
    if (folder / MANIFEST).exists():
        return
    if (folder / "config.json").exists():
        hint = f"graft it first: otter graft {folder} OUT"
    else:
        hint = "give the folder that `otter graft` wrote, or an adapter"
    raise OtterError(f"{folder} holds no {MANIFEST}: it is not a grafted folder", hint=hint)


# What can read a signal before a text has ended. Each completes "but here it ... before that".
USE_GUIDE = "guides"
USE_GATE = "opens a gate"
USE_REJECT = "rejects"
USE_CHOOSE = "chooses between unfinished texts"
USE_MONITOR = "is read at every token"


def untrained_position_warnings(
    training: Mapping[str, TrainingRecord], uses: Mapping[str, Sequence[str]]
) -> list[str]:
    """One sentence for each signal that `uses` reads before the end of a text although it was
    trained at last tokens only. Records without `positions` give no warning."""
    return [
        f"signal {name!r} was trained at the last token of whole texts alone, but here it "
        f"{_joined(reads)} before that: those values are untrained and mean nothing; train it with "
        "`positions: every`"
        for name, reads in uses.items()
        if reads and name in training and training[name].positions == LAST_TOKEN
    ]


def _joined(uses: Sequence[str]) -> str:
    *before, last = dict.fromkeys(uses)
    return f"{', '.join(before)} and {last}" if before else last
