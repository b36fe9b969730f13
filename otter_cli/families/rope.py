"""Rotary embeddings whose angles depend on the length of a text, and how far they reach.

With longrope and dynamic scaling, a text that passes a certain length gets other angles for all of
its tokens. `LengthRule` refuses batches and texts that would mix both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from otter_cli.core.errors import OtterError

# transformers' `generate` computes the KV cache of these families anew when a text first passes
# `original_max_position_embeddings` (their prepare_inputs_for_generation).
_CACHE_RESTART_LENGTHS = {"phi3": 4096}
# Older names of longrope in Phi-3's configurations.
_LONGROPE_NAMES = {"phi3": ("longrope", "su", "yarn")}


@dataclass(frozen=True)
class LengthRule:
    """Texts of up to `at` tokens are computed in one way and longer ones in another.

    `rope` is the type of the rotary embedding. `restarts`: transformers' `generate` computes the
    KV cache anew when a text passes `at`. `angles`: the angles of all tokens change there.
    """

    family: str
    rope: str
    at: int
    restarts: bool

    @property
    def angles(self) -> bool:
        return self.rope in ("longrope", "dynamic")

    def check_one_side(self, shortest: int, longest: int, where: str) -> None:
        """Raises OtterError where texts of these lengths can't have one set of angles."""
        if self.rope == "dynamic" and longest > self.at:
            raise OtterError(
                f"{where}: a text of {longest} tokens, and this {self.family} has a dynamic rotary "
                f"embedding: past {self.at} tokens its angles depend on what was computed before",
                hint=f"keep texts within {self.at} tokens, or use YaRN, which is supported",
            )
        if self.rope == "longrope" and shortest <= self.at < longest:
            raise OtterError(
                f"{where}: texts of {shortest} and of {longest} tokens, and the longrope angles of "
                f"this {self.family} change after {self.at} tokens, for all texts of a batch",
                hint=f"keep to texts of at most {self.at} tokens, or to longer ones",
            )

    def check_growth(self, prompt: int, longest: int, where: str) -> None:
        """Raises OtterError where transformers' own `generate` is inexact: a text that grows past
        `at` keeps keys rotated by the angles of short texts."""
        if self.rope == "dynamic":
            self.check_one_side(prompt, longest, where)
        if self.rope == "longrope" and not self.restarts and prompt <= self.at < longest:
            raise OtterError(
                f"{where}: a text grows from {prompt} to {longest} tokens, and the longrope angles "
                f"of this {self.family} change after {self.at}; transformers goes on with cached "
                "keys of the old angles",
                hint=f"keep prompt and new tokens within {self.at}, or begin with a longer prompt",
            )


def length_rule(config: Mapping[str, Any]) -> LengthRule | None:
    """What a model's configuration says, as written in config.json or as `to_dict()` gives it;
    None where nothing depends on the length. OtterError where layers differ in it."""
    family = str(config.get("model_type"))
    restarts = family in _CACHE_RESTART_LENGTHS
    original = config.get("original_max_position_embeddings")
    positions = config.get("max_position_embeddings", 2048)
    rules = set()
    for section in rope_settings(config):
        kind = rope_type(section)
        if kind in _LONGROPE_NAMES.get(family, ("longrope",)):
            own = section.get("original_max_position_embeddings")
            # transformers takes the outer number first, and in phi3 it has a default.
            at = original or _CACHE_RESTART_LENGTHS.get(family) or own or positions
            rules.add(LengthRule(family, "longrope", int(at), restarts))
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
    """How many positions the rotation is scaled to, where config.json names the original number of
    `positions`: YaRN and linear scaling stretch them by their factor."""
    sections = rope_settings(config)
    # Settings by layer type come with the full window in max_position_embeddings.
    if len(sections) != 1 or _is_per_layer_type(config):
        return positions
    (section,) = sections
    kind, factor = rope_type(section), section.get("factor")
    if kind not in ("yarn", "linear") or isinstance(factor, bool):
        return positions
    original = section.get("original_max_position_embeddings", positions)
    if not isinstance(factor, int | float) or original != positions:
        return positions
    return max(positions, int(positions * factor))


def rope_settings(config: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    """The rotary settings: one for all layers, or one for each layer type."""
    settings = _rope_config(config)
    nested = [section for section in settings.values() if isinstance(section, Mapping)]
    return nested or ([settings] if settings else [])


def rope_type(section: Mapping[str, Any]) -> str:
    return str(section.get("rope_type") or section.get("type") or "default")


def _rope_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    # transformers 4 wrote rope_scaling, and 5 reads it first.
    settings = config.get("rope_scaling") or config.get("rope_parameters")
    return settings if isinstance(settings, Mapping) else {}


def _is_per_layer_type(config: Mapping[str, Any]) -> bool:
    return any(isinstance(section, Mapping) for section in _rope_config(config).values())
