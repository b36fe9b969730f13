"""The base classes of every pydantic model: `StrictRecord`, and `StrictConfig` for configurations.

Both are frozen and refuse unknown keys, so that a typo does not become a default. A configuration
also suggests the nearest key, and `config_error` names the place of an error in the user's file.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from otter_cli.core.dtype_names import is_dtype, parse_dtype, stored_dtype_name
from otter_cli.core.errors import OtterError, did_you_mean


def _parse_dtype(value: Any) -> Any:
    return parse_dtype(value) if isinstance(value, str) else value


def _store_dtype(value: Any) -> Any:
    """The stored name of a known dtype. The model itself refuses anything else."""
    return stored_dtype_name(value) if isinstance(value, str) and is_dtype(value) else value


# Types of fields: `dtype: DtypeName | None`, and `Annotated[Literal["F32", ...], StoredDtype]`.
DtypeName = Annotated[str, BeforeValidator(_parse_dtype)]
StoredDtype = BeforeValidator(_store_dtype)


class StrictRecord(BaseModel):
    """A record that otter writes and reads back."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class StrictConfig(StrictRecord):
    """A configuration that a user writes, in a recipe or as options. Numbers are finite."""

    model_config = ConfigDict(allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown_keys(cls, values: Any) -> Any:
        known = list(cls.model_fields)
        for key in values if isinstance(values, dict) else ():
            if key not in known:
                hint = did_you_mean(str(key), known) + f"keys: {', '.join(known)}"
                context = {"key": repr(key), "hint": hint}
                raise PydanticCustomError("unknown_key", "unknown key {key}", context)
        return values


def config_error(error: ValidationError, source: str, values: Any) -> OtterError:
    """The first error of a validation of `values`, with its place in `source`."""
    first = error.errors()[0]
    place = _place_in_file(values, first["loc"], missing=first["type"] == "missing")
    what = first["msg"].removeprefix("Value error, ")
    what = what[:1].lower() + what[1:]
    hint = first.get("ctx", {}).get("hint", "`otter recipes show` has examples")
    return OtterError(f"{source}: {place + ': ' if place else ''}{what}", hint=hint)


def _place_in_file(values: Any, location: tuple[int | str, ...], *, missing: bool) -> str:
    """The path of keys in the file. pydantic's own path also contains the tags of unions."""
    parts = []
    for number, part in enumerate(location, 1):
        inside = part in values if isinstance(values, Mapping) else isinstance(part, int)
        if inside:
            values = values[part]
        elif not (missing and number == len(location)):
            continue
        parts.append(str(part))
    return ".".join(parts)
