"""Rotary embeddings whose angles depend on the length of a text, and how far they reach.

With longrope and dynamic scaling, the angles of all tokens change once a text exceeds a threshold.
`LengthRule` refuses batches and texts that would mix the angles of both sides.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from otter_cli.core.errors import OtterError

# transformers' `generate` recomputes the KV cache of these families when a text first exceeds
# `original_max_position_embeddings` (their prepare_inputs_for_generation).
_CACHE_RESTART_LENGTHS = {"phi3": 4096}
# Older names of longrope in Phi-3's configurations.
_LONGROPE_NAMES = {"phi3": ("longrope", "su", "yarn")}


@dataclass(frozen=True)
class LengthRule:
    """Texts of up to `threshold` tokens are computed in one way and longer ones in another.

    `rope` is the type of the rotary embedding. `restarts` says that transformers' `generate`
    recomputes the KV cache when a text exceeds the threshold.
    """

    family: str
    rope: str
    threshold: int
    restarts: bool

    @property
    def changes_angles(self) -> bool:
        """Whether the angles of all tokens change at the threshold."""
        return self.rope in ("longrope", "dynamic")

    def check_one_side(self, shortest: int, longest: int, where: str) -> None:
        """Raises OtterError where texts of these lengths cannot share one set of angles."""
        if self.rope == "dynamic" and longest > self.threshold:
            raise OtterError(
                f"{where}: a text has {longest} tokens, and this {self.family} has a dynamic "
                f"rotary embedding: beyond {self.threshold} tokens its angles depend on what was "
                "computed before",
                hint=f"keep texts within {self.threshold} tokens, or use YaRN, which is supported",
            )
        if self.rope == "longrope" and shortest <= self.threshold < longest:
            raise OtterError(
                f"{where}: texts have {shortest} and {longest} tokens, and the longrope angles of "
                f"this {self.family} change after {self.threshold} tokens, for all texts of a "
                "batch",
                hint=f"use texts of at most {self.threshold} tokens only, or longer ones only",
            )

    def check_growth(self, prompt: int, longest: int, where: str) -> None:
        """Raises OtterError where transformers' own `generate` is inexact: a text that grows beyond
        the threshold keeps cached keys that were rotated by the angles of short texts."""
        if self.rope == "dynamic":
            self.check_one_side(prompt, longest, where)
        if self.rope == "longrope" and not self.restarts and prompt <= self.threshold < longest:
            raise OtterError(
                f"{where}: a text grows from {prompt} to {longest} tokens, and the longrope angles "
                f"of this {self.family} change after {self.threshold}; transformers continues with "
                "cached keys of the old angles",
                hint=f"keep prompt and new tokens within {self.threshold}, or use a longer prompt",
            )


def length_rule(config: Mapping[str, Any]) -> LengthRule | None:
    """The rule of a configuration, given as config.json or as `to_dict()` has it. None where
    nothing depends on the length. Raises OtterError where layers have different rules."""
    family = str(config.get("model_type"))
    restarts = family in _CACHE_RESTART_LENGTHS
    original = config.get("original_max_position_embeddings")
    positions = config.get("max_position_embeddings", 2048)
    rules = set()
    for settings in rope_settings(config):
        kind = rope_type(settings)
        if kind in _LONGROPE_NAMES.get(family, ("longrope",)):
            # transformers reads the number outside the settings first. Phi-3 has a default for it.
            inner = settings.get("original_max_position_embeddings")
            threshold = original or _CACHE_RESTART_LENGTHS.get(family) or inner or positions
            rules.add(LengthRule(family, "longrope", int(threshold), restarts))
        elif "dynamic" in kind:
            rules.add(LengthRule(family, "dynamic", int(positions), False))
    if len(rules) > 1:
        raise OtterError(
            f"layers of this {family} change their rotary angles at different lengths",
            hint="use a base with one longrope or dynamic setting for all layers",
        )
    if rules or not restarts:
        return next(iter(rules), None)
    return LengthRule(family, "default", int(original or _CACHE_RESTART_LENGTHS[family]), True)


def scaled_max_positions(config: Mapping[str, Any], positions: int) -> int:
    """The number of positions that the rotation reaches. YaRN and linear scaling multiply
    `positions` by their factor where config.json gives it as the original number."""
    all_settings = rope_settings(config)
    # Settings by layer type come with the scaled number in max_position_embeddings.
    if len(all_settings) != 1 or any(isinstance(v, Mapping) for v in _rope_config(config).values()):
        return positions
    (settings,) = all_settings
    kind, factor = rope_type(settings), settings.get("factor")
    if kind not in ("yarn", "linear") or isinstance(factor, bool):
        return positions
    original = settings.get("original_max_position_embeddings", positions)
    if not isinstance(factor, int | float) or original != positions:
        return positions
    return max(positions, int(positions * factor))


def rope_settings(config: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    """The rotary settings: one mapping for all layers, or one for each layer type."""
    settings = _rope_config(config)
    by_layer_type = [value for value in settings.values() if isinstance(value, Mapping)]
    return by_layer_type or ([settings] if settings else [])


def rope_type(settings: Mapping[str, Any]) -> str:
    return str(settings.get("rope_type") or settings.get("type") or "default")


def _rope_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    # transformers 4 wrote rope_scaling, and 5 reads it first.
    settings = config.get("rope_scaling") or config.get("rope_parameters")
    return settings if isinstance(settings, Mapping) else {}
