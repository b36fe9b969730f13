"""The state of a batch while it grows: tokens, log-probabilities, signals, ends, counters."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import deepcopy

import torch
from torch import Tensor

from otter_cli.decoding.hidden_states import HiddenStates, SignalBuffer
from otter_cli.decoding.results import Generation, GenerationCounters
from otter_cli.decoding.sampling import Sampling, TokenSelector
from otter_cli.decoding.session import DecodingSession, end_tokens, signal_scores
from otter_cli.decoding.speculative.drafts import BatchDrafter
from otter_cli.decoding.stopping import Stops

OnToken = Callable[[int, int], None]
OnRead = Callable[[int, int, Mapping[str, float | list[float]]], None]


class BatchState:
    """Takes what each pass kept; a row that has ended takes no more."""

    def __init__(
        self,
        session: DecodingSession,
        prompts: list[list[int]],
        sampling: Sampling,
        signals: list[str],
        stops: Stops,
        on_token: OnToken | None,
        read_every: int,
        on_read: OnRead | None = None,
    ) -> None:
        self.session, self.prompts, self.sampling = session, prompts, sampling
        self.signals, self.stops, self.on_token, self.on_read = signals, stops, on_token, on_read
        self.eos = set() if sampling.ignore_eos else end_tokens(session)
        self.rows = [
            Generation([], [], {s: [] for s in signals}, "length", GenerationCounters())
            for _ in prompts
        ]
        self.open = [sampling.max_new_tokens > 0] * len(prompts)
        self.taken = [0] * len(prompts)  # of the last pass, by row
        self.read_every = read_every
        self.unread = SignalBuffer()
        self.told = [0] * len(prompts)
        self.passed_on = [0] * len(prompts)  # tokens that `on_read` has seen, by row
        self.seconds = self.prefill_seconds = 0.0
        self.rescoring_passes = 0
        self.lossy = False

    @property
    def done(self) -> bool:
        return not any(self.open)

    @property
    def reads(self) -> bool:
        """Whether somebody wants signals of every token, the last one too."""
        return bool(self.signals or self.stops.signals)

    @property
    def going(self) -> Tensor:
        """Which rows have not ended, [rows]."""
        return torch.tensor(self.open, device=self.session.device)

    @property
    def room(self) -> int:
        """How many tokens the row that has most left may still take."""
        lengths = [len(r.tokens) for r, going in zip(self.rows, self.open, strict=True) if going]
        return self.sampling.max_new_tokens - min(lengths, default=self.sampling.max_new_tokens)

    def texts(self, pending: Tensor | None = None) -> list[list[int]]:
        """Prompts with what has been written, and the token that is about to be."""
        written = [p + r.tokens for p, r in zip(self.prompts, self.rows, strict=True)]
        if pending is None:
            return written
        return [[*text, token] for text, token in zip(written, pending.tolist(), strict=True)]

    def add(
        self,
        tokens: Tensor,
        logits: Tensor,
        counts: Tensor | None = None,
        *,
        drawn: Tensor | None = None,
    ) -> None:
        """Tokens [rows, n] with the base's logits [rows, n, vocab] before each, and by which
        log-probabilities [rows, n] they were drawn; a row takes the first `counts` of them (default
        all), up to its end."""
        logprobs = logits.float().log_softmax(-1).gather(-1, tokens[..., None])[..., 0].tolist()
        limits = [tokens.shape[1]] * len(self.rows) if counts is None else counts.tolist()
        for row, (chosen, limit) in enumerate(zip(tokens.tolist(), limits, strict=True)):
            self.taken[row] = 0
            before = len(self.rows[row].tokens)
            for token, logprob in zip(chosen[:limit], logprobs[row][:limit], strict=True):
                if not self.open[row]:
                    break
                self._take(row, token, logprob)
            if drawn is not None:
                self.rows[row].drawn += drawn[row, : len(self.rows[row].tokens) - before].tolist()
        if not self.stops.signals:
            self._tell()

    def _take(self, row: int, token: int, logprob: float) -> None:
        generation = self.rows[row]
        generation.tokens.append(token)
        generation.logprobs.append(logprob)
        self.taken[row] += 1
        if token in self.eos:
            generation.finish, self.open[row] = "eos", False
        elif found := self.stops.found(generation.tokens):
            generation.finish, self.open[row] = "stop", False
            generation.message = f"stop string {found!r}"
        elif len(generation.tokens) == self.sampling.max_new_tokens:
            self.open[row] = False

    def add_signals(self, states: HiddenStates) -> None:
        """Signals at the positions that the last `add` took, of states [rows, n, ...], once there
        are enough of them."""
        if self.reads:
            self.unread.add(states, self.taken)
            if len(self.unread) == self.read_every or self.done:
                self.read_signals()

    def read_signals(self) -> None:
        """Signals at all positions taken since they were last read."""
        if not self.unread:
            return
        states, places = self.unread.take()
        for name in self.signals:
            scores = signal_scores(self.session, name, states).tolist()
            for generation, mine, at in zip(self.rows, scores, places, strict=True):
                found = [mine[place] for place in at]
                generation.signals[name] += [one[0] if len(one) == 1 else one for one in found]
        for bound in self.stops.signals:
            scores_of = bound.scores(self.session, states)
            for row, at in enumerate(places):
                # Positions that a row did not take are nobody's: they decide nothing.
                flags = bound.crossed(scores_of[row, at]).tolist()
                if True in flags:
                    self._reject(row, len(flags) - 1 - flags.index(True), str(bound))
                    del at[flags.index(True) + 1 :]
        # What a signal may still take back is told only now.
        if self.stops.signals:
            self._tell()
        self._pass_on()

    def _pass_on(self) -> None:
        """Gives `on_read` the tokens whose signals were just read."""
        if self.on_read is None:
            return
        for row, generation in enumerate(self.rows):
            for place in range(self.passed_on[row], len(generation.tokens)):
                scores = {name: values[place] for name, values in generation.signals.items()}
                self.on_read(row, generation.tokens[place], scores)
            self.passed_on[row] = len(generation.tokens)

    def _tell(self) -> None:
        """Passes on the tokens that stay and were not passed on yet."""
        if self.on_token is not None:
            for row, generation in enumerate(self.rows):
                for token in generation.tokens[self.told[row] :]:
                    self.on_token(row, token)
                self.told[row] = len(generation.tokens)

    def _reject(self, row: int, after: int, bound: str) -> None:
        """Ends a row at the token that crossed the bound, `after` tokens before its last."""
        generation, count = self.rows[row], len(self.rows[row].tokens) - after
        del generation.tokens[count:], generation.logprobs[count:], generation.drawn[count:]
        for scores in generation.signals.values():
            del scores[count:]
        self.taken[row] = max(0, self.taken[row] - after)
        self.open[row] = False
        generation.finish = "rejected"
        generation.message = f"{bound} at token {count}"

    def select(self, rows: list[int]) -> None:
        """The rows become `rows`, which may repeat."""
        self.rows = [deepcopy(self.rows[row]) for row in rows]
        self.open = [self.open[row] for row in rows]

    def count_drafts(self, lengths: Tensor, accepted: Tensor) -> None:
        """Counts the drafts of rows that took part."""
        for row, (drafted, kept) in enumerate(
            zip(lengths.tolist(), accepted.tolist(), strict=True)
        ):
            if self.taken[row]:
                counters = self.rows[row].counters
                _count_positions(counters.drafted, drafted)
                _count_positions(counters.accepted, min(kept, self.taken[row] - 1), width=drafted)

    def generations(self, *spent: TokenSelector | BatchDrafter | None) -> list[Generation]:
        """The rows with their counters, and what those beside the base have `spent`."""
        beside = [one for one in spent if one is not None]
        for row in self.rows:
            counters = row.counters
            counters.base_passes, counters.tokens_fed = self.session.passes, self.session.fed
            counters.external_passes = sum(one.external_passes for one in beside)
            counters.rescoring_passes = self.rescoring_passes
            counters.tokens_kept, row.lossy = len(row.tokens), self.lossy
            counters.seconds, counters.prefill_seconds = self.seconds, self.prefill_seconds
            held = sum(one.external_bytes for one in beside)
            counters.cache_bytes = self.session.cache_bytes() + held
        return self.rows


def _count_positions(counts: list[int], reached: int, width: int = 0) -> None:
    """One more at each of the first `reached` positions."""
    counts.extend([0] * (max(reached, width) - len(counts)))
    for position in range(reached):
        counts[position] += 1
