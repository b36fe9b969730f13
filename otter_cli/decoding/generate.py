"""The decoding loops, plain, guided and drafted, behind one call: `generate`."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial

from otter_cli.decoding.batch_state import BatchState, OnRead, OnToken
from otter_cli.decoding.guides.guide import Gate, Guide
from otter_cli.decoding.guides.selector import GuidedSelector
from otter_cli.decoding.hidden_states import HiddenStates
from otter_cli.decoding.request_checks import (
    check_exact_drafting,
    check_guidance,
    check_request,
    external_models_of,
    guides_of_row,
    length_rules,
    must_split,
    request_warnings,
    resolve_read_every,
    sum_counters,
    warn_once,
)
from otter_cli.decoding.results import Generation
from otter_cli.decoding.sampling import Sampler, Sampling, TokenSelector, UnguidedSelector
from otter_cli.decoding.session import DecodingSession, check_scoring_signal
from otter_cli.decoding.speculative.acceptance import Acceptance, ExactRescorer
from otter_cli.decoding.speculative.decoder import SpeculativeDecoder, check_tree_guides
from otter_cli.decoding.speculative.drafts import Drafter
from otter_cli.decoding.stopping import NO_STOPS, Stops
from otter_cli.model.otter import OtterForCausalLM


def generate(
    model: OtterForCausalLM,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    *,
    guide: Guide | Sequence[Guide] | None = None,
    gate: Gate | None = None,
    drafter: Drafter | None = None,
    acceptance: Acceptance = "lossless",
    exact: bool = False,
    signals: Sequence[str] = (),
    read_every: int | None = None,
    stops: Stops = NO_STOPS,
    on_token: OnToken | None = None,
    on_read: OnRead | None = None,
) -> list[Generation]:
    """Continues each prompt. `signals` are read at every new token; `on_token(row, token)` sees
    tokens as they come, `on_read(row, token, scores)` each token with its scores by signal, once
    they are read. Signals of `read_every` passes are read at once (by default 16, and 1 where
    one may stop a text): the stream waits until it is read. A guide of strength 0 is plain
    decoding, bit for bit. Drafts lose nothing unless `acceptance` is typical; `exact` decides
    near-ties of one greedy prompt by steps of one token, so that the text is plain decoding's
    whatever the steps round to.

    Raises OtterError for prompts that leave no room, and for signals the graft lacks.
    """
    texts = [list(prompt) for prompt in prompts]
    guides = [guide] if isinstance(guide, Guide) else list(guide or ())
    beside = external_models_of([*guides, drafter])
    check_request(model, texts, sampling, beside)
    for name in signals:
        check_scoring_signal(model, name)
    if exact:
        check_exact_drafting(texts, sampling, guides, acceptance)
    rules = length_rules([model, *beside])
    lengths = [len(text) for text in texts]
    batch = partial(
        _generate_batch,
        model,
        sampling=sampling,
        gate=gate,
        drafter=drafter,
        acceptance=acceptance,
        exact=exact,
        signals=signals,
        read_every=read_every,
        stops=stops,
    )
    if not must_split(rules, lengths, sampling.max_new_tokens, in_step=drafter is None):
        return batch(texts, guides=guides, on_token=on_token, on_read=on_read)
    for one in guides:
        one.check(len(texts), model.shape.vocab)
    alone = []
    for row, text in enumerate(texts):
        alone += batch(
            [text],
            guides=guides_of_row(guides, row),
            on_token=_callback_of_row(on_token, row),
            on_read=_callback_of_row(on_read, row),
            before=texts[:row],
        )
    return sum_counters(alone)


def _callback_of_row(report: Callable[..., None] | None, row: int) -> Callable[..., None] | None:
    """What is told of the one row of a batch, as of that row of the request."""
    return None if report is None else lambda _, *what: report(row, *what)


def _generate_batch(
    model: OtterForCausalLM,
    texts: list[list[int]],
    *,
    sampling: Sampling,
    guides: list[Guide],
    gate: Gate | None,
    drafter: Drafter | None,
    acceptance: Acceptance,
    exact: bool,
    signals: Sequence[str],
    read_every: int | None,
    stops: Stops,
    on_token: OnToken | None,
    on_read: OnRead | None,
    before: Sequence[Sequence[int]] = (),
) -> list[Generation]:
    """`generate` of prompts that share every pass; `before`: those of other batches."""
    # Strength 0 takes the step of one token: k tokens would round differently.
    steering = [one for one in guides if any(one.strengths)]
    plain = drafter is None and not steering
    parts = [drafter, *steering, gate if steering else None, stops]
    stream = bool(signals) or any(part.needs_stream for part in parts if part is not None)
    session = DecodingSession(model, stream=stream, windows="cached" if plain else "masked")
    check_guidance(session, len(texts), guides, gate, stops)
    warn_once(
        model,
        request_warnings(
            model, guides=guides, gate=gate if steering else None, stops=stops, signals=signals
        ),
    )
    chooser = (
        GuidedSelector(steering, gate, session, len(texts)) if steering else UnguidedSelector()
    )
    if drafter is not None or (isinstance(chooser, GuidedSelector) and chooser.feeds):
        session.require_masks()
    drafting = None if drafter is None else drafter.start(session)
    sampler = Sampler(sampling, texts, session.device, before)
    every = resolve_read_every(read_every, stops)
    rows = BatchState(session, texts, sampling, list(signals), stops, on_token, every, on_read)
    started = time.perf_counter()
    chooser.prefill(texts)
    if drafting is not None:
        drafting.prefill(texts)
    state = session.prefill(texts)
    rows.prefill_seconds = time.perf_counter() - started
    if drafting is not None:
        check_tree_guides(chooser)
        single = ExactRescorer(model, texts[0]) if exact else None
        rows.lossy = acceptance != "lossless"
        SpeculativeDecoder(rows, sampler, drafting, chooser, acceptance, single).run(state)
        rows.rescoring_passes = single.passes if single else 0
    else:
        decode_loop(rows, state, sampler, chooser)
    rows.seconds = time.perf_counter() - started - rows.prefill_seconds
    return rows.generations(chooser, drafting)


def decode_loop(
    rows: BatchState,
    state: HiddenStates,
    sampler: Sampler,
    chooser: TokenSelector,
    limit: int | None = None,
) -> HiddenStates:
    """A token at a time, `limit` of them at most; the states of the last that was fed."""
    while not rows.done and limit != 0:
        limit = None if limit is None else limit - 1
        logits = rows.session.logits(state)[:, 0]
        tokens, fed = chooser.choose(state, logits, sampler)
        rows.add(tokens[:, None], logits[:, None], drawn=sampler.drawn[:, None])
        # The last token is fed only when somebody wants its signals.
        if rows.done and not rows.reads:
            return state
        state = rows.session.step(tokens) if fed is None else fed
        rows.add_signals(state)
    rows.read_signals()
    return state
