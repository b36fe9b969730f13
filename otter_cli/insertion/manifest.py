"""otter.json: what was inserted into what, and how it was trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from otter_cli.checkpoint.gguf.hint import refuse_gguf
from otter_cli.checkpoint.links import resolve_inside
from otter_cli.checkpoint.listing import MANIFEST
from otter_cli.checkpoint.strict_json import is_plain, parse_object, shown
from otter_cli.core.atomic import write_json
from otter_cli.core.errors import OtterError
from otter_cli.core.small_files import read_small
from otter_cli.insertion.config import InsertionConfig
from otter_cli.insertion.storage import TENSORS, check_stored

SCHEMA_VERSION = 1
# Insertions of one folder.
_MOST = 1024


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid")


class FileRecord(_Record):
    """Digest and size of one file, as first seen."""

    bytes: int = Field(ge=0)
    sha256: str


class BaseRecord(_Record):
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


class InsertedRecord(_Record):
    """The file of inserted tensors, or the index of their shards. While it is being replaced, both
    digests are valid: see `update_tensors`."""

    file: str = TENSORS
    sha256: str
    previous_sha256: str | None = None


# Where a signal was trained: at each text's last token, at every token, or at places drawn from it.
LAST = "last"
Trained = Literal["last", "every", "drawn"]


class TrainingRecord(_Record):
    """How a signal was trained: enough to say whether its numbers mean anything. `positions`: at
    which tokens; `end`: whether texts had an end token. Records from before these were written say
    neither."""

    steps: int
    seed: int
    objective: str
    recipe_sha256: str
    data: dict[str, Any] = Field(default_factory=dict)
    metrics: dict[str, Any] = Field(default_factory=dict)
    positions: Trained | None = None
    end: bool | None = None


class Manifest(_Record):
    """The whole of otter.json."""

    schema_version: int = Field(default=SCHEMA_VERSION, ge=1)
    base: BaseRecord
    insertions: list[InsertionConfig] = Field(max_length=_MOST)
    inserted: InsertedRecord
    training: dict[str, TrainingRecord] = Field(default_factory=dict)
    provenance: list[dict[str, Any]] = Field(default_factory=list)

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Raises OtterError where there is none, or it is not ours, or of a later version."""
        refuse_gguf(folder)
        path = folder / MANIFEST
        _refuse_absent(folder)
        data = read_small(resolve_inside(folder, MANIFEST), where=str(path))
        parse_object(data, str(path))
        try:
            manifest = cls.model_validate_json(data)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"]) or "the file"
            raise OtterError(
                f"{path} is damaged: {where if is_plain(where) else shown(where)}: {first['msg']}",
                hint="graft the base again, or restore the file",
            ) from None
        if manifest.schema_version > SCHEMA_VERSION:
            raise OtterError(
                f"{path} has schema version {manifest.schema_version}; "
                f"this otter reads up to {SCHEMA_VERSION}",
                hint="update otter",
            )
        for name in manifest.base.files:
            if not is_plain(name):
                raise OtterError(
                    f"{path} is damaged: {shown(name)} is no file name",
                    hint="graft the base again, or restore the file",
                )
        return manifest

    def write(self, folder: Path) -> None:
        write_json(folder / MANIFEST, self.model_dump(mode="json"))

    def check_tensors(self, folder: Path) -> None:
        """Raises OtterError when the inserted tensors are not the ones recorded."""
        check_stored(folder, (self.inserted.sha256, self.inserted.previous_sha256))


def _refuse_absent(folder: Path) -> None:
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
