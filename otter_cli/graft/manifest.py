"""otter.json: what was inserted into which base, and how each signal was trained.

A reward that was trained at the last token of whole texts means nothing before a text has ended:
`untrained_position_warnings` says where a signal is read outside its training.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, ValidationError

from otter_cli.checkpoint.folder import MANIFEST
from otter_cli.checkpoint.gguf.header import refuse_gguf
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
from otter_cli.graft.config import InsertionConfig
from otter_cli.graft.storage import TENSORS_FILE, check_inserted_digests

MANIFEST_SCHEMA_VERSION = 1
# Insertions of one folder.
_MAX_INSERTIONS = 1024


class FileRecord(StrictRecord):
    """Digest and size of one file, as first seen."""

    bytes: int = Field(ge=0)
    sha256: str


class BaseRecord(StrictRecord):
    """The base that was grafted: where it came from and every file of it."""

    source: str
    revision: str | None = None
    family: str
    parameters: int
    dtype: str
    files: dict[str, FileRecord]

    def identity(self) -> dict[str, FileRecord]:
        """The files that make it this base and no other: weights and configurations."""
        decides = (".safetensors", "config.json", ".index.json")
        return {name: record for name, record in self.files.items() if name.endswith(decides)}


class InsertedRecord(StrictRecord):
    """The file of inserted tensors, or the index of their shards. While it is being replaced, both
    digests are valid: see `update_tensors`."""

    file: str = TENSORS_FILE
    sha256: str
    previous_sha256: str | None = None


# Where a signal was trained: at each text's last token, at every token, or at places drawn from it.
LAST_TOKEN = "last"
TrainedPositions = Literal["last", "every", "drawn"]


class TrainingRecord(StrictRecord):
    """How a signal was trained: enough to say whether its numbers mean anything. `positions`: at
    which tokens; `end`: whether texts had an end token. Records from before these were written say
    neither."""

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
        """Raises OtterError where there is none, or it is not ours, or of a later version."""
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
                hint="graft the base again, or restore the file",
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
                    f"{path} is damaged: {quoted(name)} is no file name",
                    hint="graft the base again, or restore the file",
                )
        return manifest

    def write(self, folder: Path) -> None:
        write_json(folder / MANIFEST, self.model_dump(mode="json"))

    def check_tensors(self, folder: Path) -> None:
        """Raises OtterError when the inserted tensors are not the ones recorded."""
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


# What reads a signal before a text has ended.
USE_GUIDE = "guides"
USE_GATE = "opens a gate"
USE_REJECT = "rejects"
USE_CHOOSE = "chooses between unfinished texts"
USE_MONITOR = "is read at every token"


def untrained_position_warnings(
    training: Mapping[str, TrainingRecord], uses: Mapping[str, Sequence[str]]
) -> list[str]:
    """A sentence for each signal that `uses` read before a text's end, and that was trained at its
    last token alone. Of records that do not say where, as older ones, nothing is known: none."""
    return [
        f"signal {name!r} was trained at the last token of whole texts alone, but here it "
        f"{_joined_uses(read)} before that: those values are untrained and mean nothing; train "
        f"it with "
        "`positions: every`"
        for name, read in uses.items()
        if read and name in training and training[name].positions == LAST_TOKEN
    ]


def _joined_uses(uses: Sequence[str]) -> str:
    known = list(dict.fromkeys(uses))
    return " and ".join([", ".join(known[:-1]), known[-1]] if len(known) > 1 else known)
