"""Look-up of families by name, and the reasons why a family has no wide layout."""

from __future__ import annotations

from typing import Any

from otter_cli.core.errors import OtterError, closest
from otter_cli.families.entries import ALL_FAMILIES, REFUSED_FAMILIES
from otter_cli.families.family import Family

FAMILIES: dict[str, Family] = {family.model_type: family for family in ALL_FAMILIES}

# What the classes of a family's modelling file in transformers begin with.
WIDE_CLASS_NAMES = {
    family.model_type: family.architecture.removesuffix("ForCausalLM")
    for family in ALL_FAMILIES
    if family.wide
}


def find_family(config: dict[str, Any]) -> Family:
    """The family that config.json names as `model_type`. Raises OtterError where it names none, or
    one that is not supported."""
    name = config.get("model_type")
    if not isinstance(name, str):
        raise OtterError(
            "config.json names no model_type",
            hint="is this the folder of a transformers checkpoint?",
        )
    if name in FAMILIES:
        return FAMILIES[name]
    reason, instead = REFUSED_FAMILIES.get(name, ("there is no description of it here", ""))
    instead = instead or closest(name, FAMILIES) or ""
    raise OtterError(
        f"family {name!r} is not supported: {reason}",
        hint=(f"the nearest that works: {instead}; " if instead else "")
        + "`otter inspect --families` lists what is supported",
    )


WIDE_PREFIX = "otter_wide_"  # of the model_type of a wide export


def is_wide_config(config: dict[str, Any]) -> bool:
    """Whether a config.json describes a wide export of otter."""
    return str(config.get("model_type")).startswith(WIDE_PREFIX)


def wide_layout_refusal(family: Family) -> str:
    """Why the wide layout cannot hold the family (docs/method.md, "Additive and wide layouts").
    Empty where it can."""
    attention, ffn = family.attention, family.ffn
    if family.wide:
        return ""
    if family.ffn_only:
        return family.ffn_only
    if ffn.read_at == "output":
        return "its experts would all be widened for units that stand beside their mixture"
    if attention.joint_norm:
        return "it norms all queries and keys jointly, and inserted ones must stay out of that"
    if attention.post_norm:
        return "it norms a branch's output, after the sum that a wide matrix computes at once"
    return "its norms subtract a mean, and the wide modelling file splits RMS norms only"
