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
from otter_cli.decoding.guides.guide import Gate, Guide
from otter_cli.decoding.guides.signal_guides import SignalGuide
from otter_cli.decoding.results import Generation, GenerationCounters
from otter_cli.decoding.sampling import Sampling
from otter_cli.decoding.session import DecodingSession
from otter_cli.decoding.speculative.acceptance import Acceptance
from otter_cli.decoding.stopping import NO_STOPS, Stops
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


def length_rules(models: Sequence[Any]) -> list[LengthRule]:
    """The rules of models whose rotation depends on the length."""
    rules = [length_rule(model.config.to_dict()) for model in models]
    return [rule for rule in rules if rule is not None and rule.angles]


def external_models_of(parts: Sequence[Any]) -> list[Any]:
    """The models beside the base that guides, drafters and judges hold."""
    held = [
        getattr(part, field.name)
        for part in parts
        if is_dataclass(part) and not isinstance(part, type)
        for field in fields(part)
    ]
    return [value for value in held if hasattr(value, "config") and hasattr(value, "device")]


def must_split(
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


def sum_counters(rows: Sequence[Generation]) -> list[Generation]:
    """Rows of several batches as of one: its passes and seconds are the sum of theirs."""
    summed = ("base_passes", "external_passes", "rescoring_passes", "tokens_fed")
    timed = ("seconds", "prefill_seconds")
    every = [row.counters for row in rows]
    for name in (*summed, *timed):
        total = sum(getattr(counters, name) for counters in every)
        _set_counter(every, name, total)
    _set_counter(every, "cache_bytes", max(counters.cache_bytes for counters in every))
    return list(rows)


def _set_counter(every: Sequence[GenerationCounters], name: str, value: Any) -> None:
    for counters in every:
        setattr(counters, name, value)


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
    """Warns of what this model has not been warned of: a benchmark asks once for each prompt."""
    for text in warnings:
        if text not in model.warned:
            model.warned.add(text)
            warn(text)


# Few enough for who watches a text, and so many that what the stream costs beside its products is
# little.
READ_EVERY = 16


def check_request(
    model: OtterForCausalLM,
    texts: list[list[int]],
    sampling: Sampling,
    beside: Sequence[Any] = (),
) -> None:
    """Raises OtterError for prompts that leave no room or hold tokens without a row, and for texts
    in which the base can't be equal to transformers' `generate`, or a model `beside` it to its own
    forward."""
    if not texts or not all(texts):
        raise OtterError("an empty prompt has nothing to go on from", hint="give it a word or BOS")
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
    for rule in length_rules(beside):
        if rule.rope == "dynamic":
            end = longest + sampling.max_new_tokens
            rule.check_one_side(longest, end, "a model beside the base")


def check_guidance(
    session: DecodingSession, rows: int, guides: Sequence[Guide], gate: Gate | None, stops: Stops
) -> None:
    """Raises OtterError for guides, gates and stops that the graft can't serve; an impossible
    guide is one, whatever its strength."""
    for one in guides:
        one.check(rows, session.model.shape.vocab)
        if not any(one.strengths):
            one.scorer(session)
    for bound in (*([gate.signal] if gate and gate.signal else []), *stops.signals):
        bound.check(session)


def check_exact_drafting(
    texts: list[list[int]], sampling: Sampling, guides: Sequence[Guide], acceptance: Acceptance
) -> None:
    """Raises OtterError for what steps of one token can't decide."""
    if len(texts) != 1 or sampling.temperature or guides or acceptance != "lossless":
        raise OtterError(
            "exact drafting is for one prompt, greedy and unguided",
            hint="one prompt at a time, temperature 0, no guide",
        )


def resolve_read_every(asked: int | None, stops: Stops) -> int:
    """Of how many passes signals are read at once. Raises OtterError for less than one."""
    if asked is not None and asked < 1:
        raise OtterError(f"signals of every {asked} tokens", hint="1, or more of them at once")
    return asked or (1 if stops.signals else READ_EVERY)
