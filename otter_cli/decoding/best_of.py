"""Best of n samples, over whole texts or block by block (controlled decoding).

The score is a signal that was read while generating, or comes from a separate reward model.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from otter_cli.core.errors import OtterError
from otter_cli.decoding.batch_state import BatchState
from otter_cli.decoding.generate import decode_loop
from otter_cli.decoding.guides.external_models import check_reward_model
from otter_cli.decoding.request_checks import (
    READ_EVERY,
    check_request,
    external_models_of,
    length_rules,
    must_split,
    request_warnings,
    sum_counters,
    warn_once,
)
from otter_cli.decoding.results import Generation
from otter_cli.decoding.sampling import Sampler, Sampling, UnguidedSelector
from otter_cli.decoding.session import DecodingSession, RewardSession, score_column
from otter_cli.decoding.stopping import NO_STOPS
from otter_cli.model.otter import OtterForCausalLM
from otter_cli.signals.finite import non_finite_error


@dataclass(frozen=True)
class BestOf:
    """`n` samples a prompt; the one with the highest score stays, or with the `lowest`, where it
    tells what is unwanted. After every `block` tokens, where given, the best so far is forked into
    n again (Mudgal et al., arXiv 2310.17022, section 3.2). Without `end`, a signal is read before
    a text's end token: for one that has not learnt to read an end (a recipe's `eos: false`).

    Costs n rows a step over one prefill. A `signal` costs no pass more; a `reward_model` one over
    prompt and response for each choice.
    """

    n: int = 8
    signal: str | None = None
    label: str | None = None
    reward_model: Any = None
    block: int | None = None
    lowest: bool = False
    end: bool = True

    name: ClassVar[str] = "best-of-n"
    paper: ClassVar[str] = "Mudgal et al., arXiv 2310.17022"

    @property
    def blocks_by(self) -> str | None:
        """The signal that chooses between unfinished texts."""
        return None if self.block is None else self.signal


def best_of(
    model: OtterForCausalLM,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    request: BestOf,
    *,
    signals: Sequence[str] = (),
) -> list[Generation]:
    """The best continuation of each prompt. Raises OtterError for requests without meaning."""
    texts = [list(prompt) for prompt in prompts]
    check_request(model, texts, sampling, external_models_of([request]))
    _check_best_of(request, sampling)
    warn_once(model, request_warnings(model, blocks_by=request.blocks_by, signals=signals))
    lengths = [len(text) for text in texts]
    if must_split(length_rules([model]), lengths, sampling.max_new_tokens, in_step=True):
        alone = [
            _best_of_batch(model, [text], sampling, request, signals, texts[:row])[0]
            for row, text in enumerate(texts)
        ]
        return sum_counters(alone)
    return _best_of_batch(model, texts, sampling, request, signals, ())


def _best_of_batch(
    model: OtterForCausalLM,
    texts: list[list[int]],
    sampling: Sampling,
    request: BestOf,
    signals: Sequence[str],
    before: Sequence[Sequence[int]],
) -> list[Generation]:
    """`best_of` prompts that share every pass; `before`: those of other batches."""
    read = [request.signal] if request.signal is not None else []
    names = list(dict.fromkeys([*signals, *read]))
    session = DecodingSession(model, stream=bool(names))
    session.require_attention_only()
    judge = _Judge(request, session)
    copies = [text for text in texts for _ in range(request.n)]
    earlier = [text for text in before for _ in range(request.n)]
    sampler = Sampler(sampling, copies, session.device, earlier)
    rows = BatchState(session, copies, sampling, names, NO_STOPS, None, READ_EVERY)
    started = time.perf_counter()
    state = session.prefill(texts)
    session.fork(request.n)
    state = state.rows(torch.arange(len(texts), device=session.device).repeat_interleave(request.n))
    rows.prefill_seconds = time.perf_counter() - started
    plain = UnguidedSelector()
    while not rows.done:
        state = decode_loop(rows, state, sampler, plain, request.block)
        best = judge.best(rows)
        if rows.done:
            break
        again = [row for row in best for _ in range(request.n)]
        index = torch.tensor(again, device=session.device)
        session.reorder(index)
        rows.select(again)
        state = state.rows(index)
    plain.external_passes, plain.external_bytes = judge.passes, judge.bytes
    rows.seconds = time.perf_counter() - started - rows.prefill_seconds
    found = rows.generations(plain)
    return [found[row] for row in best]


class _Judge:
    def __init__(self, request: BestOf, session: DecodingSession) -> None:
        self.request, self.passes, self.bytes = request, 0, 0
        if request.signal is not None:
            self.column = score_column(session.model, request.signal, request.label)
        else:
            check_reward_model(request.reward_model, session, "best of n")

    def best(self, rows: BatchState) -> list[int]:
        """The row with the best score among the copies of each prompt."""
        scores = torch.tensor(self._scores(rows)).unflatten(0, (-1, self.request.n))
        if not scores.isfinite().all():
            judge = self.request.signal
            what = f"signal {judge!r}" if judge is not None else "the reward model's score"
            raise non_finite_error(f"{what}, which best of n goes by,")
        first = torch.arange(len(scores)) * self.request.n
        best = scores.argmin(-1) if self.request.lowest else scores.argmax(-1)
        return [int(row) for row in first + best]

    def _scores(self, rows: BatchState) -> list[float]:
        signal = self.request.signal
        if signal is None:
            texts = rows.texts()
            rules, lengths = (
                length_rules([self.request.reward_model]),
                [len(text) for text in texts],
            )
            apart = must_split(rules, lengths, 0, in_step=False)
            batches = [[text] for text in texts] if apart else [texts]
            return [reward for batch in batches for reward in self._rewards(batch)]
        last = [self._last(generation, generation.signals[signal]) for generation in rows.rows]
        return [score[self.column] if isinstance(score, list) else score for score in last]

    def _rewards(self, texts: list[list[int]]) -> list[float]:
        session = RewardSession(self.request.reward_model)
        rewards = session.rewards(session.prefill(texts))[:, 0]
        self.passes += session.passes
        self.bytes = max(self.bytes, session.cache_bytes())
        return [float(reward) for reward in rewards]

    def _last(self, generation: Generation, scores: list[Any]) -> Any:
        # A text that is nothing but its end has no score before it.
        before = not self.request.end and generation.finish == "eos" and len(scores) > 1
        return scores[-2 if before else -1]


def _check_best_of(request: BestOf, sampling: Sampling) -> None:
    if (request.signal is None) == (request.reward_model is None):
        raise OtterError(
            "best of n wants one judge", hint="a signal of the graft, or a reward model"
        )
    if request.n < 1 or (request.block is not None and request.block < 1):
        raise OtterError(
            f"best of {request.n} in blocks of {request.block}", hint="both at least 1"
        )
    if sampling.temperature == 0 and request.n > 1:
        raise OtterError("the best of equal texts", hint="give a temperature, such as 0.8")
