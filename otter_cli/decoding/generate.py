"""The decoding loops: plain, guided, drafted; one call for all of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import torch

from otter_cli.core.errors import OtterError
from otter_cli.decoding.choosing import Chooser, Plain
from otter_cli.decoding.drafters import Drafter
from otter_cli.decoding.gates import Gate
from otter_cli.decoding.guide import Guide
from otter_cli.decoding.rows import Rows
from otter_cli.decoding.sampling import Sampler
from otter_cli.decoding.scores import check_scores
from otter_cli.decoding.session import DecodingSession
from otter_cli.decoding.state import State
from otter_cli.decoding.steering import Steered
from otter_cli.decoding.types import Generation, Sampling
from otter_cli.decoding.verify_drafts import accept
from otter_cli.model import OtterForCausalLM

OnToken = Callable[[int, int], None]


def generate(
    model: OtterForCausalLM,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    *,
    guide: Guide | Sequence[Guide] | None = None,
    gate: Gate | None = None,
    drafter: Drafter | None = None,
    signals: Sequence[str] = (),
    on_token: OnToken | None = None,
) -> list[Generation]:
    """Continues each prompt. `signals` are read at every new token; `on_token(row, token)` sees
    tokens as they come. A guide of strength 0 is plain decoding, bit for bit.

    Raises OtterError for prompts that leave no room, and for signals the graft lacks.
    """
    texts = [list(prompt) for prompt in prompts]
    guides = [guide] if isinstance(guide, Guide) else list(guide or ())
    _check(model, texts, sampling, guides, drafter)
    for name in signals:
        check_scores(model, name)
    # Strength 0 takes the step of one token: k tokens would round differently.
    steering = [one for one in guides if any(one.strengths)]
    plain = drafter is None and not steering
    parts = [drafter, *steering, gate if steering else None]
    stream = bool(signals) or any(part.needs_stream for part in parts if part is not None)
    session = DecodingSession(model, stream=stream, windows="cached" if plain else "masked")
    for one in guides:
        if not any(one.strengths):
            one.scorer(session)  # an impossible request is one, whatever its strength
    if gate is not None:
        gate.check(session)
    chooser = Steered(steering, gate, session, len(texts)) if steering else Plain()
    if drafter is not None:
        drafter.check(session)
    sampler = Sampler(sampling, texts, session.device)
    rows = Rows(session, texts, sampling, list(signals), on_token)
    started = time.perf_counter()
    chooser.prefill(texts)
    state = session.prefill(texts)
    rows.prefill_seconds = time.perf_counter() - started
    if drafter is not None:
        _drafted(rows, state, sampler, drafter)
    else:
        _one_by_one(rows, state, sampler, chooser)
    rows.seconds = time.perf_counter() - started - rows.prefill_seconds
    return rows.generations(chooser)


def _one_by_one(rows: Rows, state: State, sampler: Sampler, chooser: Chooser) -> None:
    while not rows.done:
        logits = rows.session.logits(state)[:, 0]
        tokens, fed = chooser.choose(state, logits, sampler)
        rows.add(tokens[:, None], logits[:, None])
        # The last token is fed only when somebody wants its signals.
        if rows.done and not rows.signals:
            return
        state = rows.session.step(tokens) if fed is None else fed
        rows.add_signals(state)


def _drafted(rows: Rows, state: State, sampler: Sampler, drafter: Drafter) -> None:
    session = rows.session
    before = session.logits(state)  # [rows, 1, vocab]
    pending = sampler.choose(before[:, 0])
    while not rows.done:
        drafts, lengths = drafter.draft(session, state, rows.texts(pending))
        drafts = drafts[:, : rows.room - 1]
        lengths = lengths.clamp(max=drafts.shape[1])
        chain = torch.cat([pending[:, None], drafts], 1)
        states = session.extend(chain)
        logits = session.logits(states)
        accepted, following = accept(logits, drafts, lengths, sampler)
        # A row that has ended keeps nothing, or it would run on past the window.
        session.keep((accepted + 1) * rows.going)
        rows.add(chain, torch.cat([before, logits[:, :-1]], 1), accepted + 1)
        rows.add_signals(states)
        rows.count_drafts(lengths, accepted)
        state, pending = states.at(accepted), following
        before = logits.gather(1, accepted[:, None, None].expand(-1, 1, logits.shape[-1]))


def _check(
    model: OtterForCausalLM,
    texts: list[list[int]],
    sampling: Sampling,
    guides: Sequence[Guide],
    drafter: Drafter | None,
) -> None:
    for guide in guides:
        guide.check(len(texts), model.shape.vocab)
    if guides and drafter is not None:
        raise OtterError(
            "guiding and drafting at once is not supported",
            hint="leave one of --guide and --draft out",
        )
    if not texts or not all(texts):
        raise OtterError("an empty prompt has nothing to go on from", hint="give it a word or BOS")
    longest = max(map(len, texts))
    if longest + sampling.max_new_tokens > model.shape.max_positions:
        raise OtterError(
            f"a prompt of {longest} tokens and {sampling.max_new_tokens} new ones exceed the "
            f"base's window of {model.shape.max_positions}",
            hint="shorten the prompt, or lower --max-new-tokens",
        )
