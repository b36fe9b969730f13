"""Rows of several requests in one session.

Each row has sampling settings, stops, signals and strengths of its own, and leaves the session when
it ends. `generate` is for one request; a server decodes by this. Steps, selectors and stops are
those of `generate`: a row alone gets the same tokens, log-probabilities and signals, bit for bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from otter_cli.decoding.batch_state import BatchState
from otter_cli.decoding.bounds import NO_STOPS, Stops
from otter_cli.decoding.guides.guide import Guide, GuidedSelector
from otter_cli.decoding.kv_session import HiddenStates, concatenate
from otter_cli.decoding.request_checks import (
    READ_EVERY,
    check_guidance,
    check_request,
    length_rules,
    must_split,
    request_warnings,
    warn_once,
)
from otter_cli.decoding.results import Generation
from otter_cli.decoding.sampling import (
    Sampler,
    Sampling,
    TokenSelector,
    UnguidedSelector,
    greedy_tokens,
)
from otter_cli.decoding.session import DecodingSession
from otter_cli.model.otter import OtterForCausalLM

# A shorter prompt is padded up to the longest of its batch.
_MOST_PADDING = 2.0
_FREE_PADDING = 64


@dataclass(frozen=True)
class RowRequest:
    """What one row asks for. `copy` is its place among the rows of equal prompts in its request:
    each copy draws other numbers. Each of the `guides` has one strength, which is not 0. `signals`
    may name signals of action values: the score of the chosen token is then returned. Signals are
    read every 16 steps, or with `read_each_token` at each step."""

    prompt: tuple[int, ...]
    sampling: Sampling
    copy: int = 0
    signals: tuple[str, ...] = ()
    stops: Stops = NO_STOPS
    guides: tuple[Guide, ...] = ()
    top_logprobs: int = 0
    read_each_token: bool = False

    @property
    def needs_stream(self) -> bool:
        return bool(self.signals) or self.stops.needs_stream

    @property
    def group(self) -> tuple[Guide, ...]:
        """Rows of equal groups can share a batch: those with the same guides, up to strengths. A
        guided step has several tokens and rounds differently, so plain rows keep to themselves."""
        return tuple(replace(guide, strength=0.0) for guide in self.guides)  # type: ignore[type-var]


@dataclass(frozen=True)
class RowToken:
    """A generated token, the base's log-probability of it and of the best tokens, and its
    signals."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...]
    signals: dict[str, float | list[float]]


class SharedRow:
    """One row of a batch. `take` returns its new tokens."""

    def __init__(self, request: RowRequest, session: DecodingSession) -> None:
        self.request = request
        model, prompt = session.model, list(request.prompt)
        kinds = {name: model.signal_configs[name].kind for name in request.signals}
        self.action_values = {n: list[float]() for n, kind in kinds.items() if kind == "vocabulary"}
        text_signals = [name for name in request.signals if name not in self.action_values]
        earlier = [prompt] * request.copy
        self.sampler = Sampler(request.sampling, [prompt], session.device, earlier)
        self.state = BatchState(
            session, [prompt], request.sampling, text_signals, request.stops, READ_EVERY
        )
        self.top: list[tuple[tuple[int, float], ...]] = []
        self.steps_unread = 0  # tokens whose signals are not read yet
        self.taken = 0
        self.cancelled = False

    @property
    def running(self) -> bool:
        return not (self.state.done or self.cancelled)

    @property
    def ended(self) -> bool:
        """Whether no further token can come from `take`."""
        return not self.running and (self.cancelled or not self.steps_unread)

    @property
    def generation(self) -> Generation:
        return self.state.generations[0]

    def add(self, token: Tensor, logits: Tensor, top: Sequence[tuple[int, float]]) -> None:
        """Adds a token [1], with the base's logits [1, vocab] before it."""
        self.state.add(token[:, None], logits[:, None])
        self.top.append(tuple(top))
        self.steps_unread += self.state.reads_signals

    def read(self, states: HiddenStates) -> None:
        """Reads the signals of the last tokens, whose states [1, n, ...] come first in `states`."""
        if self.steps_unread:
            self.state.signal_buffer.append((states, [self.steps_unread]))
            self.steps_unread = 0
            self.state.read_signals()

    def take(self) -> list[RowToken]:
        """The tokens since the last call, as far as their signals were read."""
        generation = self.generation
        start, stop = self.taken, len(generation.tokens) - self.steps_unread
        self.taken = max(start, stop)
        signals = {**generation.signals, **self.action_values}
        ordered = {name: signals[name] for name in self.request.signals}
        return [
            RowToken(
                generation.tokens[place],
                generation.logprobs[place],
                self.top[place],
                {name: values[place] for name, values in ordered.items()},
            )
            for place in range(start, stop)
        ]


class SharedBatch:
    """A session over rows of one group. Raises OtterError for requests that cannot run.

    `step` decodes one token of each row. Rows that ended leave the session, unless its cache cannot
    lose rows (linear attention, cached windows): they are then fed until the last row ends."""

    def __init__(self, model: OtterForCausalLM, requests: Sequence[RowRequest]) -> None:
        self.model = model
        for request in requests:
            check_request(model, [list(request.prompt)], request.sampling)
            uses = request_warnings(
                model, guides=request.guides, stops=request.stops, signals=request.signals
            )
            warn_once(model, uses)
        guided = bool(requests[0].guides)
        stream = any(request.needs_stream or request.guides for request in requests)
        windows = "masked" if guided else "cached"
        self.session = DecodingSession(model, stream=stream, windows=windows)  # type: ignore[arg-type]
        for request in requests:
            check_guidance(self.session, 1, request.guides, None, request.stops)
        self.rows = [SharedRow(request, self.session) for request in requests]
        selector = self._new_selector()
        if isinstance(selector, GuidedSelector) and selector.needs_candidate_states:
            self.session.require_masks()
        self.selector = selector
        at_once = any(r.read_each_token or r.stops.signals for r in requests)
        self.read_every = 1 if at_once else READ_EVERY
        self.unread: list[HiddenStates] = []
        self.state = self.session.prefill([list(request.prompt) for request in requests])

    @property
    def done(self) -> bool:
        return not self.rows

    def step(self) -> list[SharedRow]:
        """Decodes one token of each row. Returns the rows that were in the session; rows that have
        ended are no longer in it afterwards."""
        rows = self.rows
        self._drop_ended_rows()  # those that were cancelled since the last step
        if self.done:
            return rows
        logits = self.session.logits(self.state)[:, 0]
        sampler = _RowSamplers([row.sampler for row in self.rows])
        tokens, token_states = self.selector.choose(self.state, logits, sampler)
        self._add(tokens, logits)
        if token_states is not None or any(r.running or r.steps_unread for r in self.rows):
            self.state = self.session.step(tokens) if token_states is None else token_states
            self._read_signals()
        self._drop_ended_rows()
        return rows

    def _add(self, tokens: Tensor, logits: Tensor) -> None:
        """Adds the chosen tokens [rows] to the rows that are running."""
        top = self._top_logprobs(logits)
        actions = {name for row in self.rows for name in row.action_values}
        values = {
            name: self.session.read(name, self.state, tokens[:, None, None])[:, 0, 0].tolist()
            for name in actions
        }
        for place, row in enumerate(self.rows):
            if row.running:
                only = slice(place, place + 1)
                row.add(tokens[only], logits[only], top[place])
                for name, chosen in row.action_values.items():
                    chosen.append(values[name][place])

    def _top_logprobs(self, logits: Tensor) -> list[list[tuple[int, float]]]:
        """Of each row, as many of the best tokens as it asked for."""
        most = max(row.request.top_logprobs for row in self.rows)
        if not most:
            return [[] for _ in self.rows]
        best = logits.float().log_softmax(-1).topk(min(most, logits.shape[-1]), -1)
        pairs = [list(zip(*each, strict=True)) for each in zip(*_lists(best), strict=True)]
        return [
            pair[: row.request.top_logprobs] for pair, row in zip(pairs, self.rows, strict=True)
        ]

    def _read_signals(self) -> None:
        """Reads the signals of the last steps, once there are enough of them or a row ends."""
        if not any(row.steps_unread for row in self.rows):
            return
        self.unread.append(self.state)
        row_ends = any(row.steps_unread and not row.running for row in self.rows)
        if len(self.unread) < self.read_every and not row_ends:
            return
        states, self.unread = concatenate(self.unread), []
        for place, row in enumerate(self.rows):
            if row.steps_unread:
                row.read(states.rows(torch.tensor([place], device=self.session.device)))

    def _drop_ended_rows(self) -> None:
        running = [place for place, row in enumerate(self.rows) if row.running]
        if not running or len(running) == len(self.rows):
            self.rows = self.rows if running else []
            return
        if self.session.recurrent or any(self.session.cache.is_sliding):
            return
        # Signals of the other rows are read first: their states are those of the old rows.
        if self.unread:
            states, self.unread = concatenate(self.unread), []
            for place, row in enumerate(self.rows):
                row.read(states.rows(torch.tensor([place], device=self.session.device)))
        index = torch.tensor(running, device=self.session.device)
        self.session.reorder(index)
        self.state = self.state.rows(index)
        self.rows = [self.rows[place] for place in running]
        self.selector = self._new_selector()

    def _new_selector(self) -> TokenSelector:
        """The selector for the present rows. Scorers by signals keep no state between steps."""
        by_guide = zip(*(row.request.guides for row in self.rows), strict=True)
        guides = [
            replace(same[0], strength=tuple(w for guide in same for w in guide.strengths))
            for same in by_guide
        ]
        if not guides:
            return UnguidedSelector()
        return GuidedSelector(guides, None, self.session, len(self.rows))


def shared_rows(model: OtterForCausalLM, waiting: Sequence[RowRequest], most: int) -> list[int]:
    """Which of the `waiting` rows can start together, in their order and with the first: at most
    `most` of one group, with prompts of similar lengths."""
    rules, chosen = length_rules([model]), [0]
    longest = shortest = len(waiting[0].prompt)
    new_tokens = waiting[0].sampling.max_new_tokens
    for place, request in enumerate(waiting[1:], 1):
        if len(chosen) == most:
            break
        length = len(request.prompt)
        low, high = min(shortest, length), max(longest, length)
        tokens = max(new_tokens, request.sampling.max_new_tokens)
        apart = high > _MOST_PADDING * low + _FREE_PADDING
        if apart or request.group != waiting[0].group:
            continue
        if must_split(rules, [low, high], tokens, in_step=True):
            continue
        shortest, longest, new_tokens = low, high, tokens
        chosen.append(place)
    return chosen


def _lists(best: torch.return_types.topk) -> tuple[list[list[int]], list[list[float]]]:
    return best.indices.tolist(), best.values.tolist()


class _RowSamplers(Sampler):
    """The samplers of rows with different settings, as one."""

    def __init__(self, samplers: Sequence[Sampler]) -> None:
        self.samplers = samplers
        self.last_logprobs = torch.cat([sampler.last_logprobs for sampler in samplers])

    @property
    def greedy(self) -> bool:
        return all(sampler.greedy for sampler in self.samplers)

    def uniform(self) -> Tensor | None:
        if self.greedy:
            return None
        zero = torch.zeros_like(self.last_logprobs[:1])
        drawn = [sampler.uniform() for sampler in self.samplers]
        return torch.cat([zero if number is None else number for number in drawn])

    def pick(self, logits: Tensor, uniform: Tensor | None) -> Tensor:
        tokens = greedy_tokens(logits)
        if uniform is None:
            return tokens
        picked = [
            tokens[row : row + 1]
            if sampler.greedy
            else sampler.pick(logits[row : row + 1], uniform[row : row + 1])
            for row, sampler in enumerate(self.samplers)
        ]
        self.last_logprobs = torch.cat([sampler.last_logprobs for sampler in self.samplers])
        return torch.cat(picked)
