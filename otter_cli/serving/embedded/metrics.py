"""What `/metrics` reports, in Prometheus' text format."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SIZES = (1, 2, 4, 8, 16, 32)
_SECONDS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300)


class Metrics:
    """The counters of one server, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = own = CollectorRegistry()
        self.requests = Counter(
            "otter_requests", "Requests, by path and status", ["path", "status"], registry=own
        )
        self.prompt_tokens = Counter(
            "otter_prompt_tokens", "Tokens of prompts that were fed", registry=own
        )
        self.tokens = Counter("otter_generated_tokens", "Tokens that were generated", registry=own)
        self.answers = Counter(
            "otter_answers", "Answers that ended, by what ended them", ["finish"], registry=own
        )
        self.waiting = Gauge("otter_waiting_answers", "Answers in the queue", registry=own)
        self.running = Gauge("otter_running_answers", "Answers being written", registry=own)
        self.batches = Histogram(
            "otter_batch_answers", "Answers that started together", buckets=_SIZES, registry=own
        )
        self.seconds = Histogram(
            "otter_answer_seconds", "Seconds from request to end", buckets=_SECONDS, registry=own
        )
        self.first_token_seconds = Histogram(
            "otter_first_token_seconds",
            "Seconds from request to first token",
            buckets=_SECONDS,
            registry=own,
        )

    def text(self) -> bytes:
        return generate_latest(self.registry)
