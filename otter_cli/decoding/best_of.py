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
from otter_cli.decoding.bounds import NO_STOPS
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
from otter_cli.decoding.results import ExternalModels, Generation
from otter_cli.decoding.sampling import Sampler, Sampling, UnguidedSelector
from otter_cli.decoding.session import DecodingSession, RewardSession, score_column
from otter_cli.model.otter import OtterForCausalLM
from otter_cli.signals.finite import non_finite_error


@dataclass(frozen=True)
class BestOf:
    """`n` samples of each prompt, of which the one with the highest score is returned.

    `lowest` returns the one with the lowest score, for a signal of something unwanted. After every
    `block` tokens the best sample so far is copied n times (Mudgal et al., arXiv 2310.17022,
    section 3.2); without `block`, whole texts compete. `end=False` reads a signal before a text's
    end token: for a signal that was not trained at ends (a recipe's `eos: false`).

    Costs n rows a step after one prefill. A `signal` needs no further pass; a `reward_model` needs
    one over prompt and response for each choice.
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
    earlier: Sequence[Sequence[int]] = (),
) -> list[Generation]:
    """The best continuation of each prompt. `signals` and `earlier` are those of `generate`. Raises
    OtterError for requests without meaning."""
    texts = [list(prompt) for prompt in prompts]
    check_request(model, texts, sampling, external_models_of([request]))
    _check_best_of(request, sampling)
    warn_once(model, request_warnings(model, blocks_by=request.blocks_by, signals=signals))
    lengths = [len(text) for text in texts]
    if must_split(length_rules([model]), lengths, sampling.max_new_tokens, in_step=True):
        rows = []
        for row, text in enumerate(texts):
            before = [*earlier, *texts[:row]]
            rows += best_of(model, [text], sampling, request, signals=signals, earlier=before)
        return sum_counters(rows)
    judge_signal = [request.signal] if request.signal is not None else []
    names = list(dict.fromkeys([*signals, *judge_signal]))
    session = DecodingSession(model, stream=bool(names))
    session.require_attention_only()
    judge = _Judge(request, session)
    copies = [text for text in texts for _ in range(request.n)]
    earlier_copies = [text for text in earlier for _ in range(request.n)]
    sampler = Sampler(sampling, copies, session.device, earlier_copies)
    batch = BatchState(session, copies, sampling, names, NO_STOPS, READ_EVERY)
    started = time.perf_counter()
    state = session.prefill(texts)
    session.fork(request.n)
    state = state.rows(torch.arange(len(texts), device=session.device).repeat_interleave(request.n))
    batch.prefill_seconds = time.perf_counter() - started
    selector = UnguidedSelector()
    while not batch.done:
        state = decode_loop(batch, state, sampler, selector, request.block)
        best = judge.best(batch)
        if batch.done:
            break
        survivors = [row for row in best for _ in range(request.n)]
        index = torch.tensor(survivors, device=session.device)
        session.reorder(index)
        batch.select(survivors)
        state = state.rows(index)
    batch.seconds = time.perf_counter() - started - batch.prefill_seconds
    generations = batch.finish(judge)
    return [generations[row] for row in best]


class _Judge(ExternalModels):
    """Scores the samples of a batch."""

    def __init__(self, request: BestOf, session: DecodingSession) -> None:
        self.request = request
        if request.signal is not None:
            self.column = score_column(session.model, request.signal, request.label)
        else:
            check_reward_model(request.reward_model, session, "best of n")

    def best(self, batch: BatchState) -> list[int]:
        """The row with the best score among the copies of each prompt."""
        scores = torch.tensor(self._scores(batch)).unflatten(0, (-1, self.request.n))
        if not scores.isfinite().all():
            signal = self.request.signal
            what = f"signal {signal!r}" if signal is not None else "the reward model's score"
            raise non_finite_error(f"{what}, which best of n goes by,")
        first = torch.arange(len(scores)) * self.request.n
        best = scores.argmin(-1) if self.request.lowest else scores.argmax(-1)
        return [int(row) for row in first + best]

    def _scores(self, batch: BatchState) -> list[float]:
        signal = self.request.signal
        if signal is None:
            texts, rules = batch.texts(), length_rules([self.request.reward_model])
            split = must_split(rules, [len(text) for text in texts], 0, in_step=False)
            batches = [[text] for text in texts] if split else [texts]
            return [reward for part in batches for reward in self._rewards(part)]
        last = [self._last(row, row.signals[signal]) for row in batch.generations]
        return [score[self.column] if isinstance(score, list) else score for score in last]

    def _rewards(self, texts: list[list[int]]) -> list[float]:
        session = RewardSession(self.request.reward_model)
        rewards = session.rewards(session.prefill(texts))[:, 0]
        self.external_passes += session.passes
        self.external_bytes = max(self.external_bytes, session.cache_bytes())
        return [float(reward) for reward in rewards]

    def _last(self, generation: Generation, scores: list[Any]) -> Any:
        # A text of an end token alone has no score before it.
        before = not self.request.end and generation.finish == "eos" and len(scores) > 1
        return scores[-2 if before else -1]


def _check_best_of(request: BestOf, sampling: Sampling) -> None:
    if (request.signal is None) == (request.reward_model is None):
        raise OtterError(
            "best of n takes one judge", hint="a signal of the graft, or a reward model"
        )
    if request.n < 1 or (request.block is not None and request.block < 1):
        raise OtterError(
            f"best of {request.n} in blocks of {request.block}", hint="both at least 1"
        )
    if sampling.temperature == 0 and request.n > 1:
        raise OtterError("the best of equal texts", hint="give a temperature, such as 0.8")
