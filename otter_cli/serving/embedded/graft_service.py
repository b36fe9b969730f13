"""From the body of a request to rows on the model's thread, and the events that come back.

Prompts are encoded in one thread of their own, by a copy of the tokenizer: transformers' fast
tokenizers cannot encode while another thread decodes.
"""

from __future__ import annotations

import asyncio
import copy
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from otter_cli.api.model import encode_prompts, encode_scored_text
from otter_cli.core.errors import OtterError
from otter_cli.decoding.bounds import Stops, to_signal_bound
from otter_cli.decoding.guides.signal_guides import guides_for_signals
from otter_cli.decoding.request_checks import check_request
from otter_cli.decoding.shared_batch import RowRequest
from otter_cli.serving.embedded.answers import AnswerWriter
from otter_cli.serving.embedded.api_requests import (
    ChatRequest,
    CompletionRequest,
    ScoreRequest,
    plain_messages,
)
from otter_cli.serving.embedded.choice_text import ChoiceText
from otter_cli.serving.embedded.metrics import Metrics
from otter_cli.serving.embedded.model_thread import (
    Event,
    Job,
    ModelThread,
    OverloadedError,
    RowProgress,
)
from otter_cli.serving.signal_schema import RequestRefused, signal_series

if TYPE_CHECKING:
    from otter_cli.api.model import Otter
    from otter_cli.serving.options import ServeOptions


@dataclass
class Answering:
    """A request whose rows are queued: its writer, its job, and the events of its rows."""

    writer: AnswerWriter
    job: Job
    queue: asyncio.Queue[Event]

    async def events(self, first: RowProgress) -> AsyncIterator[Event]:
        """The events from the `first` on, until every row has ended or one has failed."""
        running = len(self.writer.choices)
        event: Event = first
        while True:
            yield event
            if isinstance(event, OtterError):
                return
            running -= event.ended is not None
            if not running:
                return
            event = await self.queue.get()


class GraftService:
    """A loaded graft, ready for requests. `start` and `close` its threads."""

    def __init__(self, otter: Otter, options: ServeOptions) -> None:
        self.otter, self.options, self.metrics = otter, options, Metrics()
        self.signals = otter.model.signal_configs
        window = otter.model.shape.max_positions
        self.max_length = min(options.max_length or window, window)
        self.model_thread = ModelThread(
            otter.model, self.metrics, max_queue=options.max_queue, max_batch=options.max_batch
        )
        self.encoder = ThreadPoolExecutor(1, thread_name_prefix="otter-encode")
        self.encoding_tokenizer = copy.deepcopy(otter.tokenizer)

    def start(self) -> None:
        self.model_thread.start()

    def close(self) -> None:
        self.model_thread.close()
        self.encoder.shutdown(wait=False, cancel_futures=True)

    async def answer(self, request: ChatRequest | CompletionRequest) -> Answering:
        """Queues the rows of a request. Raises RequestRefused and OverloadedError."""
        self.check_model(request.model)
        request.check(self.signals)
        request.check_stops()
        chat = isinstance(request, ChatRequest)
        prompts = await self._encode(lambda: self._prompt_ids(request))
        rows = [row for prompt in prompts for row in self._rows(request, prompt)]
        choices = [
            ChoiceText(
                self.otter.tokenizer,
                row.prompt,
                request.stop,
                request.signals,
                request.wants_logprobs,
            )
            for row in rows
        ]
        tokens = sum(map(len, prompts))
        name, usage = self.options.name, request.include_usage
        writer = AnswerWriter(name, chat, choices, tokens, self.signals, usage)
        queue: asyncio.Queue[Event] = asyncio.Queue()
        return Answering(writer, self.model_thread.submit(rows, _into(queue)), queue)

    def _prompt_ids(self, request: ChatRequest | CompletionRequest) -> list[list[int]]:
        if isinstance(request, ChatRequest):
            messages = plain_messages(request.messages)
            return encode_prompts(self.encoding_tokenizer, messages)[0]
        return [encode_prompts(self.encoding_tokenizer, each)[0][0] for each in request.prompts]

    def _rows(
        self, request: ChatRequest | CompletionRequest, prompt: list[int]
    ) -> list[RowRequest]:
        """The `n` rows of a prompt. Raises RequestRefused."""
        sampling = request.sampling(self._answer_tokens(request, len(prompt)))
        active = {name: strength for name, strength in request.guide.items() if strength}
        with _refusing():
            check_request(self.otter.model, [prompt], sampling)
            guides = guides_for_signals(self.otter.model, active, request.guide_candidates)
        bounds = tuple(map(to_signal_bound, request.bounds))
        return [
            RowRequest(
                tuple(prompt),
                sampling,
                copy=number,
                signals=request.signals,
                stops=Stops(request.stop, bounds, self.otter.tokenizer),
                guides=tuple(guides),
                top_logprobs=request.top_count,
                read_each_token=bool(request.stream),
            )
            for number in range(request.n)
        ]

    def _answer_tokens(self, request: ChatRequest | CompletionRequest, prompt: int) -> int:
        """The largest number of tokens of an answer. Raises RequestRefused."""
        room, limit = self.max_length - prompt, request.answer_limit
        if room < 1 or (limit is not None and limit > room):
            wanted = "an answer" if limit is None else f"{limit} tokens of answer"
            raise RequestRefused(
                f"the prompt has {prompt} tokens, and with {wanted} it exceeds the "
                f"{self.max_length} tokens of this model",
                hint="shorten the prompt or lower max_tokens",
                param="messages" if isinstance(request, ChatRequest) else "prompt",
            )
        if limit is not None and limit > self.options.max_tokens:
            raise RequestRefused(
                f"max_tokens is {limit}, and this server writes {self.options.max_tokens}",
                hint="lower max_tokens, or start the server with a larger --max-tokens",
                param="max_tokens",
            )
        return min(room, self.options.max_tokens) if limit is None else limit

    async def score(self, request: ScoreRequest) -> dict[str, Any]:
        """The signals of texts at each of their tokens. Raises RequestRefused."""
        self.check_model(request.model)
        request.check(self.signals)
        names = list(request.signals) or self.otter.signals
        for name in names:
            if self.signals[name].kind == "vocabulary":
                raise RequestRefused(
                    f"signals: signal {name!r} scores tokens that could come, and no text",
                    hint=f"signals that score text: {', '.join(self.otter.signals) or 'none'}",
                    param="signals",
                )
        texts = await self._encode(
            lambda: [encode_scored_text(self.encoding_tokenizer, text) for text in request.texts]
        )
        data = []
        for index, ids in enumerate(texts):
            score = partial(self.otter.score, ids, signals=names)
            with _refusing():
                scored = await asyncio.wrap_future(self.model_thread.call(score))
            signals = {
                name: signal_series(values.tolist(), self.signals[name].labels)
                for name, values in scored.signals.items()
            }
            entry = {"object": "score", "index": index, "tokens": scored.tokens}
            data.append({**entry, "signals": signals})
        tokens = sum(map(len, texts))
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        return {"object": "list", "model": self.options.name, "data": data, "usage": usage}

    async def _encode(self, function: Callable[[], list[list[int]]]) -> list[list[int]]:
        """Token ids, from the encoder's thread. Raises RequestRefused."""
        with _refusing():
            return await asyncio.get_running_loop().run_in_executor(self.encoder, function)

    def check_model(self, name: str | None) -> None:
        """Raises RequestRefused where a request names another model than this one."""
        if name is not None and name != self.options.name:
            raise RequestRefused(
                f"there is no model {name!r} here",
                hint=f"this server has {self.options.name!r}",
                param="model",
                status=404,
            )


@contextmanager
def _refusing() -> Iterator[None]:
    """What is wrong with a request is its sender's error."""
    try:
        yield
    except (RequestRefused, OverloadedError):
        raise
    except OtterError as error:
        raise RequestRefused(error.what, hint=error.hint) from error


def _into(queue: asyncio.Queue[Event]) -> Callable[[Event], None]:
    """A function that puts events into `queue` from another thread."""
    loop = asyncio.get_running_loop()

    def emit(event: Event) -> None:
        # The loop is closed once the server was stopped before it was drained.
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(queue.put_nowait, event)

    return emit
