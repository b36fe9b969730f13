"""The decoding loops behind one call, `generate`: plain, guided and drafted.

How a guided token is made, one file after the other:

1. session step: `decode_loop` (this file) asks the selector for the next tokens, and
   `GuidedSelector.choose` (`guides/guide.py`) feeds the k best candidates of each row in one pass,
   `DecodingSession.run` (`session.py`);
2. captured activations: wrappers keep what the base's modules compute (`model/capture.py`);
3. stream: the insertion computes its states from the captured activations (`model/stream.py`);
4. signal: a head reads base and inserted states (`signals/heads.py`);
5. guide: the signal's values are the candidates' scores (`guides/signal_guides.py`);
6. token: the selector adds strength * score to the base's logits and picks a token;
7. cache: `KVSession.keep_candidate` (`kv_session.py`) keeps that token's cache entry. Its states
   are there already, so the next logits need no further pass.

The formulas are in docs/method.md, "Guided decoding". The drafted loop is in
`speculative/decoder.py`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from otter_cli.core.errors import OtterError
from otter_cli.decoding.batch_state import BatchState, OnRead, OnToken
from otter_cli.decoding.bounds import NO_STOPS, Gate, Stops
from otter_cli.decoding.guides.guide import Guide, GuidedSelector
from otter_cli.decoding.kv_session import HiddenStates
from otter_cli.decoding.request_checks import (
    READ_EVERY,
    check_guidance,
    check_request,
    external_models_of,
    length_rules,
    must_split,
    request_warnings,
    sum_counters,
    warn_once,
)
from otter_cli.decoding.results import Generation
from otter_cli.decoding.sampling import Sampler, Sampling, TokenSelector, UnguidedSelector
from otter_cli.decoding.session import DecodingSession, check_scoring_signal
from otter_cli.decoding.speculative.decoder import Acceptance, ExactRescorer, SpeculativeDecoder
from otter_cli.decoding.speculative.drafts import Drafter
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
    earlier: Sequence[Sequence[int]] = (),
) -> list[Generation]:
    """Continues each prompt (a list of token ids).

    `signals` are read at every new token, those of `read_every` passes at once (default: 16, or 1
    where a signal may stop a text). `on_token(row, token)` is called for each token, and
    `on_read(row, token, scores)` once its signals are read. A guide of strength 0 is plain
    decoding, bit for bit. Drafts are lossless unless `acceptance` is typical. `exact` decides
    near-ties of one greedy prompt by steps of one token: the text is then that of plain decoding,
    whatever the rounding. `earlier`: prompts that came before, so that a repeated prompt draws
    other numbers.

    Raises OtterError for prompts that leave no room, and for signals that the graft lacks.
    """
    texts = [list(prompt) for prompt in prompts]
    guides = [guide] if isinstance(guide, Guide) else list(guide or ())
    external = external_models_of([*guides, drafter])
    check_request(model, texts, sampling, external)
    for name in signals:
        check_scoring_signal(model, name)
    lossless = acceptance == "lossless"
    if exact and (len(texts) != 1 or sampling.temperature or guides or not lossless):
        raise OtterError(
            "exact drafting is for one prompt, greedy and unguided",
            hint="one prompt at a time, temperature 0, no guide",
        )
    if read_every is not None and read_every < 1:
        raise OtterError(f"signals of every {read_every} tokens", hint="1, or more of them at once")
    rules, lengths = length_rules([model, *external]), [len(text) for text in texts]
    if must_split(rules, lengths, sampling.max_new_tokens, in_step=drafter is None):
        for each in guides:
            each.check(len(texts), model.shape.vocab)
        rows = []
        for row, text in enumerate(texts):
            rows += generate(
                model,
                [text],
                sampling,
                guide=[each.of_row(row) for each in guides],
                gate=gate,
                drafter=drafter,
                acceptance=acceptance,
                signals=signals,
                read_every=read_every,
                stops=stops,
                on_token=_callback_of_row(on_token, row),
                on_read=_callback_of_row(on_read, row),
                earlier=[*earlier, *texts[:row]],
            )
        return sum_counters(rows)
    # A guide of strength 0 is left out: a step of k tokens rounds differently from a step of one.
    active = [each for each in guides if any(each.strengths)]
    gate_used = gate if active else None
    parts = [drafter, *active, gate_used, stops]
    stream = bool(signals) or any(part.needs_stream for part in parts if part is not None)
    plain = drafter is None and not active
    session = DecodingSession(model, stream=stream, windows="cached" if plain else "masked")
    check_guidance(session, len(texts), guides, gate, stops)
    uses = request_warnings(model, guides=guides, gate=gate_used, stops=stops, signals=signals)
    warn_once(model, uses)
    guided = GuidedSelector(active, gate_used, session, len(texts)) if active else None
    if drafter is not None or (guided is not None and guided.needs_candidate_states):
        session.require_masks()
    sampler = Sampler(sampling, texts, session.device, earlier)
    every = read_every or (1 if stops.signals else READ_EVERY)
    batch = BatchState(session, texts, sampling, list(signals), stops, every, on_token, on_read)
    if drafter is None:
        return _decode(batch, sampler, guided or UnguidedSelector())
    rescorer = ExactRescorer(model, texts[0]) if exact else None
    batch_drafter = drafter.start(session)
    decoder = SpeculativeDecoder(batch, sampler, batch_drafter, guided, acceptance, rescorer)
    return _decode(batch, sampler, guided or UnguidedSelector(), decoder)


def _callback_of_row(callback: Callable[..., None] | None, row: int) -> Callable[..., None] | None:
    """Called for row 0 of a batch, it calls `callback` for `row` of the request."""
    return None if callback is None else lambda _, *arguments: callback(row, *arguments)


def _decode(
    batch: BatchState,
    sampler: Sampler,
    selector: TokenSelector,
    decoder: SpeculativeDecoder | None = None,
) -> list[Generation]:
    """Feeds the prompts and decodes until every row has ended, with times and counters."""
    external = [selector] if decoder is None else [selector, decoder.drafter]
    started = time.perf_counter()
    for models in external:
        models.prefill(batch.prompts)
    state = batch.session.prefill(batch.prompts)
    batch.prefill_seconds = time.perf_counter() - started
    if decoder is None:
        decode_loop(batch, state, sampler, selector)
    else:
        decoder.run(state)
    batch.seconds = time.perf_counter() - started - batch.prefill_seconds
    return batch.finish(*external)


def decode_loop(
    batch: BatchState,
    state: HiddenStates,
    sampler: Sampler,
    selector: TokenSelector,
    limit: int | None = None,
) -> HiddenStates:
    """Decodes one token a row at a time, at most `limit` of them. `state` [rows, 1, ...] are the
    states of the last tokens; returned are those of the last tokens that were fed."""
    while not batch.done and limit != 0:
        limit = None if limit is None else limit - 1
        logits = batch.session.logits(state)[:, 0]
        tokens, token_states = selector.choose(state, logits, sampler)
        batch.add(tokens[:, None], logits[:, None], drawn=sampler.last_logprobs[:, None])
        # The last token is fed only where its signals are needed.
        if batch.done and not batch.reads_signals:
            return state
        state = batch.session.step(tokens) if token_states is None else token_states
        batch.add_signals(state)
    batch.read_signals()
    return state
