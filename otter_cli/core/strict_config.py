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
from otter_cli.core.errors import OtterError, closest, did_you_mean
from otter_cli.core.glossary import explain_hint


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
                context = {"key": repr(key), "hint": hint, "near": closest(str(key), known)}
                raise PydanticCustomError("unknown_key", "unknown key {key}", context)
        return values


_EXAMPLES = "`otter recipes show` has examples"


def config_error(error: ValidationError, source: str, values: Any) -> OtterError:
    """The first error of a validation of `values`, with its place in `source`."""
    first = error.errors()[0]
    place = _place_in_file(values, first["loc"], missing=first["type"] == "missing")
    context = first.get("ctx", {})
    if first["type"].startswith("union_tag"):
        return _unknown_choice(f"{source}: {place}", context)
    hint = context.get("hint", _EXAMPLES)
    key = str(context.get("near") or place.rpartition(".")[2])
    if explained := explain_hint(key):
        hint = f"{hint}; {explained}"
    what = plain_message(first["msg"])
    return OtterError(f"{source}: {place + ': ' if place else ''}{what}", hint=hint)


def _unknown_choice(place: str, context: Mapping[str, Any]) -> OtterError:
    """A section whose kind is missing, or is none of the known ones. `context` is pydantic's."""
    key = str(context["discriminator"]).strip("'")
    if "tag" not in context:
        return OtterError(f"{place}: {key} is missing", hint=f"`otter explain` lists every {key}")
    known = [tag.strip("'") for tag in str(context["expected_tags"]).split(", ")]
    return OtterError(
        f"{place}: there is no {key} {context['tag']!r}",
        hint=f"{did_you_mean(str(context['tag']), known)}one of: {', '.join(known)}; "
        "`otter explain` says what they mean",
    )


def plain_message(message: str) -> str:
    """pydantic's message in our words."""
    text = message.removeprefix("Value error, ")
    text = text.replace("Input should be", "it must be").replace("Field required", "it is missing")
    text = text.replace("a valid dictionary", "a mapping of keys to values")
    return text[:1].lower() + text[1:]


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
