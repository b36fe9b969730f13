"""The supported families by name, and the refusal of all others."""

from __future__ import annotations

from typing import Any

from otter_cli.core.errors import OtterError
from otter_cli.core.suggest import closest
from otter_cli.families.entries import ENTRIES
from otter_cli.families.family import Family
from otter_cli.families.refused import REFUSED

FAMILIES: dict[str, Family] = {family.model_type: family for family in ENTRIES}


def find_family(config: dict[str, Any]) -> Family:
    """The family of a base by config.json's `model_type`. Raises OtterError, naming it, where
    unsupported."""
    name = config.get("model_type")
    if not isinstance(name, str):
        raise OtterError(
            "config.json names no model_type",
            hint="is this the folder of a transformers checkpoint?",
        )
    if name in FAMILIES:
        return FAMILIES[name]
    why, instead = REFUSED.get(name, ("there is no description of it here", ""))
    instead = instead or closest(name, FAMILIES) or ""
    raise OtterError(
        f"family {name!r} is not supported: {why}",
        hint=(f"the nearest that works: {instead}; " if instead else "")
        + "`otter inspect --families` lists what is supported",
    )
