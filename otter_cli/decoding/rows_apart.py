"""Rows that can't share a batch: a rotation of the base, or of a model beside it, depends on the
length of the longest text, and a row's text may not depend on what else is in the batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, is_dataclass, replace
from typing import Any

from otter_cli.decoding.guide import Guide
from otter_cli.decoding.types import Counters, Generation
from otter_cli.families import LengthRule, length_rule


def rules_of(models: Sequence[Any]) -> list[LengthRule]:
    """The rules of models whose rotation depends on the length."""
    rules = [length_rule(model.config.to_dict()) for model in models]
    return [rule for rule in rules if rule is not None and rule.angles]


def models_of(parts: Sequence[Any]) -> list[Any]:
    """The models beside the base that guides, drafters and judges hold."""
    held = [
        getattr(part, field.name)
        for part in parts
        if is_dataclass(part) and not isinstance(part, type)
        for field in fields(part)
    ]
    return [value for value in held if hasattr(value, "config") and hasattr(value, "device")]


def must_part(
    rules: Sequence[LengthRule], prompts: Sequence[int], new_tokens: int, *, in_step: bool
) -> bool:
    """Whether rows that start at these lengths could lie on both sides of a rule's length. Rows of
    equal prompts never do where they go on `in_step`, a token each."""
    if len(prompts) < 2 or (in_step and len(set(prompts)) == 1):
        return False
    shortest, longest = min(prompts), max(prompts) + new_tokens
    return any(shortest <= rule.at < longest for rule in rules)


def guides_of_row(guides: Sequence[Guide], row: int) -> list[Guide]:
    """The guides, with the strength that they have in one row."""
    alone: list[Any] = [
        replace(guide, strength=guide.strengths[row]) if len(guide.strengths) > 1 else guide  # type: ignore[type-var]
        for guide in guides
    ]
    return alone


def share_counters(rows: Sequence[Generation]) -> list[Generation]:
    """Rows of several batches as of one: its passes and seconds are the sum of theirs."""
    summed = ("base_passes", "external_passes", "rescoring_passes", "tokens_fed")
    timed = ("seconds", "prefill_seconds")
    every = [row.counters for row in rows]
    for name in (*summed, *timed):
        total = sum(getattr(counters, name) for counters in every)
        _set(every, name, total)
    _set(every, "cache_bytes", max(counters.cache_bytes for counters in every))
    return list(rows)


def _set(every: Sequence[Counters], name: str, value: Any) -> None:
    for counters in every:
        setattr(counters, name, value)
