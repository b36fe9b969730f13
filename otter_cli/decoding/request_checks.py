"""Checks of a request before anything runs: errors, warnings, and which rows can share a batch.

Rows are split where the rotary angles of a model depend on the longest text of the batch: the text
of a row must not depend on the other rows. A warning names each signal that is read at positions
it was not trained on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, is_dataclass, replace
from typing import Any

from otter_cli.core.console import warn
from otter_cli.core.errors import OtterError
from otter_cli.decoding.bounds import NO_STOPS, Gate, Stops
from otter_cli.decoding.guides.guide import Guide
from otter_cli.decoding.guides.signal_guides import SignalGuide
from otter_cli.decoding.results import Generation
from otter_cli.decoding.sampling import Sampling
from otter_cli.decoding.session import DecodingSession
from otter_cli.families.rope import LengthRule, length_rule
from otter_cli.families.token_ids import check_token_ids
from otter_cli.graft.manifest import (
    USE_CHOOSE,
    USE_GATE,
    USE_GUIDE,
    USE_MONITOR,
    USE_REJECT,
    untrained_position_warnings,
)
from otter_cli.model.otter import OtterForCausalLM

# A reader of the text sees scores within 16 tokens; the stream's fixed cost is spread over 16
# passes.
READ_EVERY = 16
_SUMMED_COUNTERS = (
    "base_passes",
    "external_passes",
    "rescoring_passes",
    "tokens_fed",
    "seconds",
    "prefill_seconds",
)


def length_rules(models: Sequence[Any]) -> list[LengthRule]:
    """The length rules of those models whose rotary angles depend on the length of the text."""
    rules = [length_rule(model.config.to_dict()) for model in models]
    return [rule for rule in rules if rule is not None and rule.changes_angles]


def external_models_of(parts: Sequence[Any]) -> list[Any]:
    """The models beside the base in the fields of guides, drafters and best-of-n requests."""
    values = [
        getattr(part, field.name)
        for part in parts
        if is_dataclass(part) and not isinstance(part, type)
        for field in fields(part)
    ]
    return [value for value in values if hasattr(value, "config") and hasattr(value, "device")]


def must_split(
    rules: Sequence[LengthRule], prompts: Sequence[int], new_tokens: int, *, in_step: bool
) -> bool:
    """Whether rows that start at these lengths could lie on both sides of a rule's length. Rows of
    equal prompts cannot where they grow `in_step`, one token each."""
    if len(prompts) < 2 or (in_step and len(set(prompts)) == 1):
        return False
    shortest, longest = min(prompts), max(prompts) + new_tokens
    return any(shortest <= rule.threshold < longest for rule in rules)


def sum_counters(rows: Sequence[Generation]) -> list[Generation]:
    """Rows of several batches as rows of one: its passes and seconds are the sum of theirs."""
    counters = [row.counters for row in rows]
    totals: dict[str, Any] = {
        name: sum(getattr(one, name) for one in counters) for name in _SUMMED_COUNTERS
    }
    cache_bytes = max(one.cache_bytes for one in counters)
    for row in rows:
        row.counters = replace(row.counters, cache_bytes=cache_bytes, **totals)
    return list(rows)


def request_warnings(
    model: OtterForCausalLM,
    *,
    guides: Sequence[Guide] = (),
    gate: Gate | None = None,
    stops: Stops = NO_STOPS,
    signals: Sequence[str] = (),
    blocks_by: str | None = None,
) -> list[str]:
    """A sentence for each signal that is read where it was not trained. `blocks_by`: the signal
    that chooses between blocks of unfinished texts."""
    uses: dict[str, list[str]] = {}
    for guide in guides:
        if isinstance(guide, SignalGuide) and any(guide.strengths):
            uses.setdefault(guide.signal, []).append(USE_GUIDE)
    if gate is not None and gate.signal is not None:
        uses.setdefault(gate.signal.signal, []).append(USE_GATE)
    for bound in stops.signals:
        uses.setdefault(bound.signal, []).append(USE_REJECT)
    if blocks_by is not None:
        uses.setdefault(blocks_by, []).append(USE_CHOOSE)
    for name in signals:
        uses.setdefault(name, []).append(USE_MONITOR)
    return untrained_position_warnings(model.manifest.training, uses)


def warn_once(model: OtterForCausalLM, warnings: Sequence[str]) -> None:
    """Prints each warning once per model: a benchmark makes one request for each prompt."""
    for text in warnings:
        if text not in model.warned:
            model.warned.add(text)
            warn(text)


def check_request(
    model: OtterForCausalLM,
    texts: list[list[int]],
    sampling: Sampling,
    external: Sequence[Any] = (),
) -> None:
    """Raises OtterError for prompts that are empty, too long or hold unknown token ids. Raises it
    too for lengths at which the base's texts could not equal those of transformers' `generate`, or
    an `external` model's outputs those of its own forward."""
    if not texts or not all(texts):
        raise OtterError("an empty prompt cannot be continued", hint="give it a word or BOS")
    check_token_ids(texts, model.shape, "prompt")
    longest = max(map(len, texts))
    if longest + sampling.max_new_tokens > model.shape.max_positions:
        raise OtterError(
            f"a prompt of {longest} tokens and {sampling.max_new_tokens} new ones exceed the "
            f"base's window of {model.shape.max_positions}",
            hint="shorten the prompt, or lower --max-new-tokens",
        )
    if model.shape.length_rule is not None:
        for text in texts:
            end = len(text) + sampling.max_new_tokens
            model.shape.length_rule.check_growth(len(text), end, "the base")
    for rule in length_rules(external):
        if rule.rope == "dynamic":
            end = longest + sampling.max_new_tokens
            rule.check_one_side(longest, end, "a model beside the base")


def check_guidance(
    session: DecodingSession, rows: int, guides: Sequence[Guide], gate: Gate | None, stops: Stops
) -> None:
    """Raises OtterError for guides, gates and stops that do not work with the graft. A guide of
    strength 0, which never runs, is checked too."""
    for guide in guides:
        guide.check(rows, session.model.shape.vocab)
        if not any(guide.strengths):
            guide.scorer(session)
    for bound in (*([gate.signal] if gate and gate.signal else []), *stops.signals):
        bound.check(session)
