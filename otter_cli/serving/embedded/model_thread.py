"""The one thread that runs the model. The server's side only queues rows and receives events.

Rows wait in a bounded queue. At most two batches decode at a time, in turns, one token each: a
second one may start while a long answer is written, and under load each new batch takes all the
rows that have gathered meanwhile. Scores of texts run between steps.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from otter_cli.core.console import warn
from otter_cli.core.errors import OtterError
from otter_cli.decoding.shared_batch import RowRequest, RowToken, SharedBatch, shared_rows
from otter_cli.serving.signal_schema import RequestRefused

if TYPE_CHECKING:
    from otter_cli.decoding.results import Generation
    from otter_cli.model.otter import OtterForCausalLM
    from otter_cli.serving.embedded.metrics import Metrics

_MOST_BATCHES = 2
_LONGEST_WAIT = 60  # seconds in a Retry-After


class OverloadedError(OtterError):
    """The queue is full. `retry_after`: seconds until there may be room."""

    def __init__(self, retry_after: int) -> None:
        super().__init__(
            "the server's queue is full", hint=f"try again in {retry_after} s, or later"
        )
        self.retry_after = retry_after


@dataclass(frozen=True)
class RowProgress:
    """New tokens of row `index` of a request, and the generation once the row has ended."""

    index: int
    tokens: list[RowToken]
    ended: Generation | None = None


Event = RowProgress | OtterError


@dataclass(eq=False)
class _Row:
    """A row that waits or runs. `emit` passes events to the request's side."""

    index: int
    request: RowRequest
    emit: Callable[[Event], None]
    submitted: float = field(default_factory=time.monotonic)
    cancelled: bool = False
    first_token: bool = False


@dataclass(eq=False)
class Job:
    """The rows of one request."""

    rows: list[_Row]

    def cancel(self) -> None:
        """Frees the rows: they leave the queue, or their batch before its next step."""
        for row in self.rows:
            row.cancelled = True


class _Batch:
    def __init__(self, model: OtterForCausalLM, rows: list[_Row]) -> None:
        self.batch = SharedBatch(model, [row.request for row in rows])
        self.rows = dict(zip(self.batch.rows, rows, strict=True))  # those that have not ended

    def step(self) -> list[tuple[_Row, list[RowToken], Generation | None]]:
        """One token of each row: its new tokens, and its generation where it has ended."""
        for shared, row in self.rows.items():
            shared.cancelled = shared.cancelled or row.cancelled
        news = []
        for shared in self.batch.step():
            if shared not in self.rows:
                continue
            row = self.rows[shared]
            tokens = shared.take()
            if shared.ended:
                del self.rows[shared]
            news.append((row, tokens, shared.generation if shared.ended else None))
        return news


class ModelThread:
    """Runs rows and calls on the model, in a thread that `start` starts and `close` ends."""

    def __init__(
        self, model: OtterForCausalLM, metrics: Metrics, *, max_queue: int, max_batch: int
    ) -> None:
        self.model, self.metrics = model, metrics
        self.max_queue, self.max_batch = max_queue, max_batch
        self.work = threading.Condition()
        self.waiting: list[_Row] = []
        self.calls: deque[tuple[Callable[[], Any], Future[Any]]] = deque()
        self.batches: list[_Batch] = []
        self.closing = False
        self.seconds_per_row = 1.0  # of late, smoothed
        self.thread = threading.Thread(target=self._run, name="otter-model", daemon=True)

    def start(self) -> None:
        self.thread.start()

    def close(self, timeout: float = 30.0) -> None:
        """Ends the thread. Rows that are left get an error."""
        with self.work:
            self.closing = True
            self.work.notify()
        if self.thread.is_alive():
            self.thread.join(timeout)

    @property
    def alive(self) -> bool:
        return self.thread.is_alive()

    def submit(self, requests: Sequence[RowRequest], emit: Callable[[Event], None]) -> Job:
        """Queues the rows of one request. `emit` is called in the model's thread and must not
        block. Raises OverloadedError where the queue has no room for all of them."""
        if len(requests) > self.max_queue:
            raise RequestRefused(
                f"{len(requests)} answers in one request, and the queue holds {self.max_queue}",
                hint="ask for fewer at a time",
            )
        with self.work:
            self._require_room(len(requests))
            job = Job([_Row(index, request, emit) for index, request in enumerate(requests)])
            self.waiting += job.rows
            self.work.notify()
        return job

    def call(self, function: Callable[[], Any]) -> Future[Any]:
        """Runs a short function on the model's thread, between steps. Raises OverloadedError."""
        future: Future[Any] = Future()
        with self.work:
            self._require_room(1)
            self.calls.append((function, future))
            self.work.notify()
        return future

    def _require_room(self, count: int) -> None:
        if self.closing or not self.alive:
            raise OverloadedError(_LONGEST_WAIT)
        self.waiting = [row for row in self.waiting if not row.cancelled]
        waiting = len(self.waiting) + len(self.calls)
        if waiting + count > self.max_queue:
            rounds = math.ceil(waiting / (_MOST_BATCHES * self.max_batch))
            seconds = math.ceil(rounds * self.seconds_per_row)
            raise OverloadedError(min(max(seconds, 1), _LONGEST_WAIT))

    def _run(self) -> None:
        try:
            self._serve()
        finally:
            self._abandon()

    def _serve(self) -> None:
        while True:
            with self.work:
                while not (self.closing or self.waiting or self.calls or self.batches):
                    self._report_load()
                    self.work.wait()
                if self.closing:
                    return
                starting = self._take_rows()
                call = self.calls.popleft() if self.calls else None
            if starting:
                self._start(starting)
            if call is not None:
                _run_call(*call)
            for batch in list(self.batches):
                self._step(batch)
            self._report_load()

    def _take_rows(self) -> list[_Row]:
        """The rows of the next batch, taken from the queue."""
        self.waiting = [row for row in self.waiting if not row.cancelled]
        if not self.waiting or len(self.batches) == _MOST_BATCHES:
            return []
        chosen = shared_rows(self.model, [row.request for row in self.waiting], self.max_batch)
        rows = [self.waiting[place] for place in chosen]
        self.waiting = [row for row in self.waiting if row not in rows]
        return rows

    def _start(self, rows: list[_Row]) -> None:
        """Feeds the prompts. What a request cannot have shows here, before any token."""
        try:
            batch = _Batch(self.model, rows)
        except OtterError as error:
            _emit_error(rows, RequestRefused(error.what, hint=error.hint))
        except Exception as error:  # noqa: BLE001 - one request must not end the server
            self._report_failure(rows, error)
        else:
            self.batches.append(batch)
            self.metrics.batches.observe(len(rows))
            self.metrics.prompt_tokens.inc(sum(len(row.request.prompt) for row in rows))

    def _step(self, batch: _Batch) -> None:
        try:
            news = batch.step()
        except Exception as error:  # noqa: BLE001 - one request must not end the server
            self.batches.remove(batch)
            self._report_failure(list(batch.rows.values()), error)
            return
        for row, tokens, ended in news:
            self._count(row, tokens, ended)
            if tokens or ended is not None:
                row.emit(RowProgress(row.index, tokens, ended))
        if not batch.rows:
            self.batches.remove(batch)

    def _count(self, row: _Row, tokens: list[RowToken], ended: Generation | None) -> None:
        seconds = time.monotonic() - row.submitted
        self.metrics.tokens.inc(len(tokens))
        if tokens and not row.first_token:
            row.first_token = True
            self.metrics.first_token_seconds.observe(seconds)
        if ended is not None:
            finish = "cancelled" if row.cancelled else ended.finish
            self.metrics.answers.labels(finish).inc()
            self.metrics.seconds.observe(seconds)
            self.seconds_per_row += 0.1 * (seconds - self.seconds_per_row)

    def _report_failure(self, rows: list[_Row], error: Exception) -> None:
        """Rows of a batch share its failure: a signal that is not finite, memory that is full."""
        warn(f"a batch of {len(rows)} failed: {type(error).__name__}: {error}")
        self.metrics.answers.labels("error").inc(len(rows))
        if not isinstance(error, OtterError):
            error = OtterError("the server failed to answer", hint="its log says why")
        _emit_error(rows, error)

    def _report_load(self) -> None:
        self.metrics.waiting.set(len(self.waiting) + len(self.calls))
        self.metrics.running.set(sum(len(batch.rows) for batch in self.batches))

    def _abandon(self) -> None:
        """Ends what is left when the server stops before it was drained."""
        with self.work:
            self.closing = True
            rows = [*self.waiting, *(row for batch in self.batches for row in batch.rows.values())]
            calls = list(self.calls)
        error = OtterError("the server was stopped")
        _emit_error(rows, error)
        for _, future in calls:
            future.set_exception(error)


def _run_call(function: Callable[[], Any], future: Future[Any]) -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        future.set_result(function())
    except Exception as error:  # noqa: BLE001 - goes to the request that it belongs to
        future.set_exception(error)


def _emit_error(rows: Sequence[_Row], error: OtterError) -> None:
    for row in rows:
        row.emit(error)
