"""The state of a batch while it grows: tokens, log-probabilities, signals, ends, counters."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import deepcopy

import torch
from torch import Tensor

from otter_cli.decoding.bounds import Stops
from otter_cli.decoding.kv_session import HiddenStates, concatenate
from otter_cli.decoding.results import ExternalModels, Generation, GenerationCounters
from otter_cli.decoding.sampling import Sampling
from otter_cli.decoding.session import DecodingSession, end_tokens, signal_scores

OnToken = Callable[[int, int], None]
OnRead = Callable[[int, int, Mapping[str, float | list[float]]], None]


class BatchState:
    """The rows of a batch; each pass adds the tokens that it kept. A row that has ended takes no
    more."""

    def __init__(
        self,
        session: DecodingSession,
        prompts: list[list[int]],
        sampling: Sampling,
        signals: list[str],
        stops: Stops,
        read_every: int,
        on_token: OnToken | None = None,
        on_read: OnRead | None = None,
    ) -> None:
        self.session, self.prompts, self.sampling = session, prompts, sampling
        self.signals, self.stops, self.on_token, self.on_read = signals, stops, on_token, on_read
        self.eos = set() if sampling.ignore_eos else end_tokens(session)
        self.generations = [
            Generation([], [], {s: [] for s in signals}, "length", GenerationCounters())
            for _ in prompts
        ]
        self.running = [sampling.max_new_tokens > 0] * len(prompts)
        self.tokens_taken = [0] * len(prompts)  # of the last pass, by row
        # Passes whose signals are not read yet: states [rows, n, ...], and how many of the n
        # positions each row took. One read over many positions costs less than many reads over one.
        self.read_every, self.signal_buffer = read_every, list[tuple[HiddenStates, list[int]]]()
        # Tokens that `on_token` and `on_read` were called for, by row.
        self.reported_tokens, self.reported_reads = [0] * len(prompts), [0] * len(prompts)
        self.seconds = self.prefill_seconds = 0.0
        self.rescoring_passes = 0
        self.lossy = False

    @property
    def done(self) -> bool:
        return not any(self.running)

    @property
    def reads_signals(self) -> bool:
        """Whether signals of every token are needed, the last token included."""
        return bool(self.signals or self.stops.signals)

    @property
    def running_mask(self) -> Tensor:
        """Which rows have not ended, [rows]."""
        return torch.tensor(self.running, device=self.session.device)

    @property
    def room(self) -> int:
        """How many tokens the shortest row that has not ended may still take."""
        lengths = [
            len(row.tokens)
            for row, running in zip(self.generations, self.running, strict=True)
            if running
        ]
        return self.sampling.max_new_tokens - min(lengths, default=self.sampling.max_new_tokens)

    def texts(self, pending: Tensor | None = None) -> list[list[int]]:
        """Prompts and generated tokens by row, and the `pending` token [rows] after them."""
        texts = [p + r.tokens for p, r in zip(self.prompts, self.generations, strict=True)]
        if pending is None:
            return texts
        return [[*text, token] for text, token in zip(texts, pending.tolist(), strict=True)]

    def add(
        self,
        tokens: Tensor,
        logits: Tensor,
        counts: Tensor | None = None,
        *,
        drawn: Tensor | None = None,
    ) -> None:
        """Adds tokens [rows, n], with the base's logits [rows, n, vocab] before each and the
        log-probabilities [rows, n] with which they were `drawn`. A row takes the first `counts` of
        them (default: all), up to its end."""
        logprobs = logits.float().log_softmax(-1).gather(-1, tokens[..., None])[..., 0].tolist()
        limits = [tokens.shape[1]] * len(self.generations) if counts is None else counts.tolist()
        for row, (chosen, limit) in enumerate(zip(tokens.tolist(), limits, strict=True)):
            self.tokens_taken[row] = 0
            for token, logprob in zip(chosen[:limit], logprobs[row][:limit], strict=True):
                if not self.running[row]:
                    break
                self._append_token(row, token, logprob)
            if drawn is not None:
                self.generations[row].drawn += drawn[row, : self.tokens_taken[row]].tolist()
        # A signal that stops a row may remove tokens; they are reported once it was read.
        if not self.stops.signals:
            self._report_tokens()

    def _append_token(self, row: int, token: int, logprob: float) -> None:
        generation = self.generations[row]
        generation.tokens.append(token)
        generation.logprobs.append(logprob)
        self.tokens_taken[row] += 1
        if token in self.eos:
            generation.finish, self.running[row] = "eos", False
        elif match := self.stops.first_match(generation.tokens):
            generation.finish, self.running[row] = "stop", False
            generation.message, generation.stopped_by = f"stop string {match!r}", match
        elif len(generation.tokens) == self.sampling.max_new_tokens:
            self.running[row] = False

    def add_signals(self, states: HiddenStates) -> None:
        """Buffers the states [rows, n, ...] of the tokens that the last `add` took, and reads the
        signals of `read_every` passes at once."""
        if self.reads_signals:
            self.signal_buffer.append((states, list(self.tokens_taken)))
            if len(self.signal_buffer) == self.read_every or self.done:
                self.read_signals()

    def read_signals(self) -> None:
        """Reads the signals at all buffered positions."""
        if not self.signal_buffer:
            return
        passes, self.signal_buffer = self.signal_buffer, []
        states = concatenate([states for states, _ in passes])
        places: list[list[int]] = [[] for _ in self.generations]
        start = 0
        for pass_states, taken in passes:
            for row, count in enumerate(taken):
                places[row] += range(start, start + count)
            start += pass_states.base.shape[1]
        for name in self.signals:
            scores = signal_scores(self.session, name, states).tolist()
            for row, generation in enumerate(self.generations):
                values = [scores[row][place] for place in places[row]]
                generation.signals[name] += [v[0] if len(v) == 1 else v for v in values]
        for bound in self.stops.signals:
            bound_scores = bound.scores(self.session, states)
            for row, row_places in enumerate(places):
                # Positions that the row did not take are ignored.
                flags = bound.crossed(bound_scores[row, row_places]).tolist()
                if True in flags:
                    first = flags.index(True)
                    self._reject(row, len(flags) - 1 - first, str(bound))
                    del row_places[first + 1 :]
        if self.stops.signals:
            self._report_tokens()
        self._report_reads()

    def _report_reads(self) -> None:
        """Calls `on_read` for the tokens whose signals were just read."""
        if self.on_read is None:
            return
        for row, generation in enumerate(self.generations):
            for place in range(self.reported_reads[row], len(generation.tokens)):
                scores = {name: values[place] for name, values in generation.signals.items()}
                self.on_read(row, generation.tokens[place], scores)
            self.reported_reads[row] = len(generation.tokens)

    def _report_tokens(self) -> None:
        """Calls `on_token` for the tokens since the last call."""
        if self.on_token is not None:
            for row, generation in enumerate(self.generations):
                for token in generation.tokens[self.reported_tokens[row] :]:
                    self.on_token(row, token)
                self.reported_tokens[row] = len(generation.tokens)

    def _reject(self, row: int, after: int, bound: str) -> None:
        """Ends a row at the token that crossed the bound, `after` tokens before its last."""
        generation = self.generations[row]
        count = len(generation.tokens) - after
        del generation.tokens[count:], generation.logprobs[count:], generation.drawn[count:]
        for scores in generation.signals.values():
            del scores[count:]
        self.tokens_taken[row] = max(0, self.tokens_taken[row] - after)
        self.running[row] = False
        generation.finish = "rejected"
        generation.message, generation.stopped_by = f"{bound} at token {count}", bound

    def select(self, rows: list[int]) -> None:
        """The rows become `rows`, which may repeat."""
        self.generations = [deepcopy(self.generations[row]) for row in rows]
        self.running = [self.running[row] for row in rows]

    def count_drafts(self, lengths: Tensor, accepted: Tensor) -> None:
        """Counts drafts and acceptances by position, in rows that took tokens of this pass."""
        for row, (drafted, kept) in enumerate(
            zip(lengths.tolist(), accepted.tolist(), strict=True)
        ):
            if self.tokens_taken[row]:
                counters = self.generations[row].counters
                _count_positions(counters.drafted, drafted)
                kept = min(kept, self.tokens_taken[row] - 1)
                _count_positions(counters.accepted, kept, width=drafted)

    def finish(self, *external: ExternalModels) -> list[Generation]:
        """The rows with their counters, those of external models included."""
        for row in self.generations:
            counters, session = row.counters, self.session
            counters.base_passes, counters.tokens_fed = session.passes, session.fed_tokens
            counters.external_passes = sum(models.external_passes for models in external)
            counters.rescoring_passes = self.rescoring_passes
            counters.tokens_kept, row.lossy = len(row.tokens), self.lossy
            counters.seconds, counters.prefill_seconds = self.seconds, self.prefill_seconds
            external_bytes = sum(models.external_bytes for models in external)
            counters.cache_bytes = session.cache_bytes() + external_bytes
        return self.generations


def _count_positions(counts: list[int], reached: int, width: int = 0) -> None:
    """Adds one at each of the first `reached` positions."""
    counts.extend([0] * (max(reached, width) - len(counts)))
    for position in range(reached):
        counts[position] += 1
