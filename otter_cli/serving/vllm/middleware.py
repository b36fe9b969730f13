"""Signals in OpenAI's schema from vLLM's own server, by its extension point for ASGI middleware:

    vllm serve EXPORT --middleware otter_cli.serving.vllm.middleware.SignalsMiddleware

`otter serve OUT --engine vllm` passes that option. A request with fields of `signal_schema.py` is
translated (`translation.py`), and its answer turned back (`answers.py`). Every other request and
its answer pass byte for byte; /v1/models alone describes the signals, too.

vLLM puts this middleware outside its check of API keys. So it answers no request by itself: a
refusal replaces what vLLM answers, unless vLLM refuses the key.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any

from otter_cli.core.errors import OtterError
from otter_cli.serving.signal_schema import (
    RequestExtension,
    RequestRefused,
    describe_signals,
    refusal_body,
)
from otter_cli.serving.vllm.answers import AnswerSignals, Json
from otter_cli.serving.vllm.engine_checks import ANNOUNCED_SIGNALS
from otter_cli.serving.vllm.last_row import LastRowReader
from otter_cli.serving.vllm.requests import SignalOutputs
from otter_cli.serving.vllm.translation import translate

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

CHAT, COMPLETIONS, MODELS = "/v1/chat/completions", "/v1/completions", "/v1/models"
# A JSON text that has none of these has none of our fields. A key may be written with escapes.
_HINTS = (*(name.encode() for name in RequestExtension.model_fields), b"\\u")
_DATA = b"data: "
_DONE = b"[DONE]"


class SignalsMiddleware:
    """vLLM calls it with the next application, as Starlette does."""

    def __init__(self, app: App) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        method, path = _endpoint(scope)
        if method == "GET" and path == MODELS and ANNOUNCED_SIGNALS.get("graft"):
            await self.app(scope, receive, _WholeBody(send, _describe))
        elif method == "POST" and path in (CHAT, COMPLETIONS):
            await self._generate(scope, receive, send, chat=path == CHAT)
        else:
            await self.app(scope, receive, send)

    async def _generate(self, scope: Scope, receive: Receive, send: Send, *, chat: bool) -> None:
        content, receive = await _read_body(receive)
        body = _own_body(content)
        if body is None:
            await self.app(scope, receive, send)
            return
        try:
            outputs = _served_signals()
            translated, plan = translate(body, outputs, chat=chat)
        except OtterError as error:
            await self._refuse(scope, receive, send, error)
            return
        scope, receive = _with_body(scope, receive, translated)
        if plan is None:
            await self.app(scope, receive, send)
            return
        last_row = LastRowReader(scope["app"].state.engine_client, plan)
        streamed = bool(translated.get("stream"))
        answer = AnswerSignals(plan, outputs, last_row, streamed=streamed)
        await self.app(scope, receive, _AnswerSender(send, answer))

    async def _refuse(self, scope: Scope, receive: Receive, send: Send, error: OtterError) -> None:
        """vLLM refuses an empty body, after it has checked the key; its refusal is replaced."""
        scope, receive = _with_body(scope, receive, {})
        await self.app(scope, receive, _Refusal(send, error))


def _endpoint(scope: Scope) -> tuple[str, str]:
    """Method and path of a request; empty for what is no HTTP request."""
    if scope["type"] != "http":
        return "", ""
    return scope["method"], scope["path"].removeprefix(scope.get("root_path", ""))


def _served_signals() -> SignalOutputs:
    outputs = ANNOUNCED_SIGNALS.get("graft", SignalOutputs(()))
    if outputs is None:
        raise RequestRefused(
            "this engine drafts, and vLLM reads no signals beside a drafter",
            hint="serve the graft without --speculative-config",
        )
    return outputs


async def _read_body(receive: Receive) -> tuple[bytes, Receive]:
    """The body of a request, and what gives the application the same messages once more."""
    messages = [await receive()]
    while messages[-1]["type"] == "http.request" and messages[-1].get("more_body"):
        messages.append(await receive())
    content = b"".join(message.get("body", b"") for message in messages)

    async def again() -> Message:
        return messages.pop(0) if messages else await receive()

    return content, again


def _own_body(content: bytes) -> Json | None:
    """The decoded body, where it has one of our fields."""
    if not any(hint in content for hint in _HINTS):
        return None
    try:
        body = json.loads(content)
    except (ValueError, RecursionError):  # RecursionError: brackets nested too deep
        return None  # vLLM says what is wrong with it.
    own = isinstance(body, dict) and any(name in body for name in RequestExtension.model_fields)
    return body if own else None


def _with_body(scope: Scope, receive: Receive, body: Json) -> tuple[Scope, Receive]:
    """A request with another body. What comes after the body, such as a disconnect, stays."""
    content = json.dumps(body).encode()
    sent = False

    async def replaced() -> Message:
        nonlocal sent
        if not sent:
            sent = True
            return {"type": "http.request", "body": content, "more_body": False}
        message = await receive()
        while message["type"] == "http.request":
            message = await receive()
        return message

    headers = _with_length(scope["headers"], len(content))
    return {**scope, "headers": headers}, replaced


def _with_length(headers: Iterable[tuple[bytes, bytes]], length: int) -> list[tuple[bytes, bytes]]:
    kept = [(name, value) for name, value in headers if name.lower() != b"content-length"]
    return [*kept, (b"content-length", str(length).encode())]


class _WholeBody:
    """Sends an answer whose body `change` has changed. Errors pass as they are."""

    def __init__(self, send: Send, change: Callable[[Json], Awaitable[Json]]) -> None:
        self.send, self.change = send, change
        self.start: Message | None = None
        self.content = b""

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start" and message["status"] == 200:
            self.start = message
        elif self.start is None or message["type"] != "http.response.body":
            await self.send(message)
        else:
            self.content += message.get("body", b"")
            if not message.get("more_body"):
                content = _dumped(await self.change(json.loads(self.content)))
                headers = _with_length(self.start["headers"], len(content))
                await self.send({**self.start, "headers": headers})
                await self.send({"type": "http.response.body", "body": content})


class _AnswerSender:
    """Sends an answer of vLLM with its signals: a stream event by event, any other as a whole."""

    def __init__(self, send: Send, answer: AnswerSignals) -> None:
        self.send, self.answer = send, answer
        self.whole = _WholeBody(send, self._change)
        self.events: bytes | None = None  # of a stream, what is not complete yet

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start" and _is_stream(message):
            self.events = b""
            await self.send(message)
        elif self.events is None or message["type"] != "http.response.body":
            await self.whole(message)
        else:
            *events, self.events = (self.events + message.get("body", b"")).split(b"\n\n")
            out = [each for event in events for each in await self._take(event)]
            more = message.get("more_body", False)
            if not more:
                out += [_event(each) for each in self.answer.rest()] + [self.events]
            if out or not more:
                await self.send({**message, "body": b"".join(out)})

    async def _take(self, event: bytes) -> list[bytes]:
        """What is sent for an event: those whose values are known."""
        if not event.startswith(_DATA):
            return [event + b"\n\n"]  # a comment that keeps the connection open
        if event == _DATA + _DONE:
            return [*map(_event, self.answer.rest()), event + b"\n\n"]
        taken = await self.answer.take(json.loads(event.removeprefix(_DATA)))
        return [_event(each) for each in taken]

    async def _change(self, body: Json) -> Json:
        await self.answer.take(body)
        return body


def _is_stream(message: Message) -> bool:
    types = [value for name, value in message["headers"] if name.lower() == b"content-type"]
    return message["status"] == 200 and any(t.startswith(b"text/event-stream") for t in types)


def _event(event: Json) -> bytes:
    return _DATA + _dumped(event) + b"\n\n"


def _dumped(body: Json) -> bytes:
    return json.dumps(body, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()


class _Refusal:
    """Sends our refusal in the place of vLLM's, but for those of a key."""

    def __init__(self, send: Send, error: OtterError) -> None:
        self.send, self.error = send, error
        self.of_the_key = False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.of_the_key = message["status"] in (401, 403)
        if self.of_the_key:
            await self.send(message)
        elif message["type"] == "http.response.start":
            content = _dumped(refusal_body(self.error))
            headers = _with_length([(b"content-type", b"application/json")], len(content))
            status = getattr(self.error, "status", 400)
            await self.send({"type": message["type"], "status": status, "headers": headers})
            await self.send({"type": "http.response.body", "body": content})


async def _describe(body: Json) -> Json:
    outputs = ANNOUNCED_SIGNALS["graft"]
    if outputs is not None:
        for model in body.get("data", []):
            model.update(describe_signals(outputs.signals.values()))
    return body
