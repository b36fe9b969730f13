"""Base classes of configuration and of stored records: unknown keys are refused.

A typo must not become a default, so an error names the place of the key and the nearest right one.
`StrictConfig` is for what users write, `StrictRecord` for what otter writes itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from otter_cli.core.errors import OtterError, closest


class StrictConfig(BaseModel):
    """A mapping of a recipe. Unknown keys are refused: a typo must not become a default."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown_keys(cls, values: Any) -> Any:
        for key in values if isinstance(values, dict) else ():
            if key not in cls.model_fields:
                known = list(cls.model_fields)
                raise PydanticCustomError(
                    "unknown_key",
                    "unknown key {key}",
                    {"key": repr(key), "hint": _hint_for_key(key, known)},
                )
        return values


def config_error(error: ValidationError, source: str, values: Any) -> OtterError:
    """The first complaint of a validation of `values`, with its place in `source`."""
    first = error.errors()[0]
    where = _place_in_file(values, first["loc"], missing=first["type"] == "missing")
    what = first["msg"].removeprefix("Value error, ")
    what = what[:1].lower() + what[1:]
    hint = first.get("ctx", {}).get("hint", "`otter recipes show` has examples")
    return OtterError(f"{source}: {where + ': ' if where else ''}{what}", hint=hint)


def _hint_for_key(key: object, known: list[str]) -> str:
    near = closest(str(key), known)
    return (f"did you mean {near!r}? " if near else "") + f"keys: {', '.join(known)}"


def _place_in_file(values: Any, location: tuple[int | str, ...], *, missing: bool) -> str:
    """The path as the file has it: pydantic's own holds the tags of alternatives too."""
    parts = []
    for number, part in enumerate(location, 1):
        inside = part in values if isinstance(values, Mapping) else isinstance(part, int)
        if inside:
            values = values[part]
        elif not (missing and number == len(location)):
            continue
        parts.append(str(part))
    return ".".join(parts)


class StrictRecord(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")
