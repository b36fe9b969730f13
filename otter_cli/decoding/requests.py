"""What of a request can't be met, said before anything runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from otter_cli.core.errors import OtterError
from otter_cli.decoding.gates import Gate
from otter_cli.decoding.guide import Guide
from otter_cli.decoding.rows_apart import rules_of
from otter_cli.decoding.session import DecodingSession
from otter_cli.decoding.stops import Stops
from otter_cli.decoding.types import Sampling
from otter_cli.decoding.verify_drafts import Acceptance
from otter_cli.families.ids import check_ids
from otter_cli.model import OtterForCausalLM

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
    check_ids(texts, model.shape, "prompt")
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
    for rule in rules_of(beside):
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


def check_exact(
    texts: list[list[int]], sampling: Sampling, guides: Sequence[Guide], acceptance: Acceptance
) -> None:
    """Raises OtterError for what steps of one token can't decide."""
    if len(texts) != 1 or sampling.temperature or guides or acceptance != "lossless":
        raise OtterError(
            "exact drafting is for one prompt, greedy and unguided",
            hint="one prompt at a time, temperature 0, no guide",
        )


def read_every_of(asked: int | None, stops: Stops) -> int:
    """Of how many passes signals are read at once. Raises OtterError for less than one."""
    if asked is not None and asked < 1:
        raise OtterError(f"signals of every {asked} tokens", hint="1, or more of them at once")
    return asked or (1 if stops.signals else READ_EVERY)
