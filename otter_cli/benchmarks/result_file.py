"""result.json, of whichever benchmark: written atomically, read strictly."""

from __future__ import annotations

from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict, ValidationError

from otter_cli.core.atomic import write_json
from otter_cli.core.errors import OtterError
from otter_cli.core.small_files import OWN_BYTES, read_small

RESULT = "result.json"


class Part(BaseModel):
    """A part of a result: nothing unknown in it, and no figure that is not finite."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class ResultFile(Part):
    """The whole of it; `benchmark` is its first line in every kind."""

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Raises OtterError where there is none, or it is damaged, or of a later version."""
        path = folder / RESULT
        if not path.exists():
            raise OtterError(
                f"{folder} holds no {RESULT}: no finished run",
                hint="give the same `otter bench` command again: it resumes",
            )
        text = read_small(path, limit=OWN_BYTES)
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"]) or "the file"
            raise OtterError(
                f"{path} cannot be read: {where}: {first['msg']}",
                hint="give the same `otter bench` command again: samples are kept",
            ) from error

    def write(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / RESULT, self.model_dump(mode="json"))
