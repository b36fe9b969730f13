"""The endpoints of `otter serve`."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException

from otter_cli.core.errors import OtterError
from otter_cli.serving.embedded.answers import SERVER_ERROR
from otter_cli.serving.embedded.api_requests import ChatRequest, CompletionRequest, ScoreRequest
from otter_cli.serving.embedded.choice_text import ChoicePart
from otter_cli.serving.embedded.guards import Guards
from otter_cli.serving.embedded.model_thread import Event, OverloadedError
from otter_cli.serving.signal_schema import (
    RequestRefused,
    describe_signals,
    error_body,
    refusal_body,
    refused_by,
)

if TYPE_CHECKING:
    from otter_cli.serving.embedded.graft_service import Answering, GraftService

PAGE = Path(__file__).parents[1] / "page"
_PAGE_FILES = {
    "/": ("page.html", "text/html"),
    "/page.js": ("page.js", "text/javascript"),
    "/page.css": ("page.css", "text/css"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
}
_SECONDS_BETWEEN_LOOKS = 0.25


def create_app(service: GraftService) -> FastAPI:
    """The application. Its threads are the service's, which must have been started."""
    # The pages of FastAPI's documentation load scripts from a network: they are left out.
    app = FastAPI(title="otter serve", docs_url=None, redoc_url=None)
    endpoints = Endpoints(service)
    app.add_api_route("/health", endpoints.health, methods=["GET"])
    app.add_api_route("/metrics", endpoints.metrics, methods=["GET"])
    app.add_api_route("/v1/models", endpoints.models, methods=["GET"])
    app.add_api_route("/v1/models/{name:path}", endpoints.one_model, methods=["GET"])
    app.add_api_route("/v1/chat/completions", endpoints.chat, methods=["POST"], response_model=None)
    app.add_api_route("/v1/completions", endpoints.complete, methods=["POST"], response_model=None)
    app.add_api_route("/v1/score", endpoints.score, methods=["POST"])
    for path, (file, kind) in _PAGE_FILES.items():
        app.add_api_route(path, _page_file(file, kind), methods=["GET"], include_in_schema=False)
    _add_error_handlers(app)
    options = service.options
    app.add_middleware(
        Guards,
        metrics=service.metrics,
        known=frozenset(getattr(route, "path", "") for route in app.routes),
        hosts=options.hosts,
        api_key=options.api_key,
        max_body=options.max_body,
    )
    return app


class Endpoints:
    """What each path does."""

    def __init__(self, service: GraftService) -> None:
        self.service, self.started = service, int(time.time())

    async def health(self) -> JSONResponse:
        alive = self.service.model_thread.alive
        return JSONResponse({"status": "ok" if alive else "down"}, 200 if alive else 503)

    async def metrics(self) -> Response:
        kind = "text/plain; version=0.0.4; charset=utf-8"
        return Response(self.service.metrics.text(), media_type=kind)

    async def models(self) -> dict[str, Any]:
        return {"object": "list", "data": [self._model()]}

    async def one_model(self, name: str) -> dict[str, Any]:
        self.service.check_model(name)
        return self._model()

    def _model(self) -> dict[str, Any]:
        service = self.service
        return {
            "id": service.options.name,
            "object": "model",
            "created": self.started,
            "owned_by": "otter",
            "max_model_len": service.max_length,
            "max_tokens": service.options.max_tokens,
            "chat": bool(service.otter.tokenizer.chat_template),
            **describe_signals(service.signals.values()),
        }

    async def chat(self, body: ChatRequest, request: Request) -> Response:
        return await self._answer(body, request)

    async def complete(self, body: CompletionRequest, request: Request) -> Response:
        return await self._answer(body, request)

    async def score(self, body: ScoreRequest, request: Request) -> dict[str, Any]:
        scores: dict[str, Any] = await _or_gone(self.service.score(body), request)
        return scores

    async def _answer(self, body: ChatRequest | CompletionRequest, request: Request) -> Response:
        answering = await self.service.answer(body)
        try:
            # A request that cannot run is refused before its first token: the status says so.
            first = await _or_gone(answering.queue.get(), request)
            if isinstance(first, OtterError):
                raise first
            events = answering.events(first)
            if body.stream:
                stream = _cancelling(answering.writer.stream(events), answering)
                return StreamingResponse(stream, media_type="text/event-stream", headers=_NO_CACHE)
            whole = await _or_gone(_collect(answering, events), request)
        except BaseException:
            answering.job.cancel()
            raise
        return JSONResponse(whole)


_NO_CACHE = {"cache-control": "no-cache", "x-accel-buffering": "no"}


class _ClientGoneError(Exception):
    """Nobody reads the answer any more."""


async def _or_gone(work: Any, request: Request) -> Any:
    """The result of `work`. Raises _ClientGoneError once the client has closed the connection."""
    task = asyncio.ensure_future(work)
    try:
        while True:
            done, _ = await asyncio.wait({task}, timeout=_SECONDS_BETWEEN_LOOKS)
            if done:
                return task.result()
            if await request.is_disconnected():
                raise _ClientGoneError
    finally:
        task.cancel()


async def _collect(answering: Answering, events: AsyncIterator[Event]) -> dict[str, Any]:
    parts: list[list[ChoicePart]] = [[] for _ in answering.writer.choices]
    async for event in events:
        if isinstance(event, OtterError):
            raise event
        parts[event.index].append(answering.writer.add(event))
    return answering.writer.whole(parts)


async def _cancelling(chunks: AsyncIterator[str], answering: Answering) -> AsyncIterator[str]:
    """`chunks`; when the client goes away, the server closes this, and the rows are freed."""
    try:
        async for chunk in chunks:
            yield chunk
    finally:
        answering.job.cancel()


def _page_file(name: str, kind: str) -> Any:
    async def page() -> FileResponse:
        return FileResponse(PAGE / name, media_type=kind, headers={"cache-control": "no-cache"})

    return page


def _add_error_handlers(app: FastAPI) -> None:
    """Every error has OpenAI's form."""

    async def invalid(request: Request, error: Any) -> JSONResponse:
        return _refusal(_refused_body(error))

    async def refused(request: Request, error: Any) -> JSONResponse:
        return _refusal(error)

    async def overloaded(request: Request, error: Any) -> JSONResponse:
        body = error_body(f"{error.what}; {error.hint}", kind="overloaded_error")
        return JSONResponse(body, 429, {"retry-after": str(error.retry_after)})

    async def http_error(request: Request, error: Any) -> JSONResponse:
        return JSONResponse(error_body(str(error.detail)), error.status_code, error.headers)

    async def gone(request: Request, error: Any) -> Response:
        return Response(status_code=499)  # nobody reads it; the count of requests has it

    async def failed(request: Request, error: Any) -> JSONResponse:
        return JSONResponse(refusal_body(error, SERVER_ERROR), 500)

    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(RequestRefused, refused)
    app.add_exception_handler(OverloadedError, overloaded)
    app.add_exception_handler(HTTPException, http_error)
    app.add_exception_handler(_ClientGoneError, gone)
    app.add_exception_handler(OtterError, failed)


def _refusal(error: RequestRefused) -> JSONResponse:
    return JSONResponse(refusal_body(error), error.status)


def _refused_body(error: RequestValidationError) -> RequestRefused:
    """FastAPI's errors are pydantic's, with "body" before the place."""
    errors: Sequence[Any] = error.errors()
    first = dict(errors[0])
    first["loc"] = tuple(first["loc"])[1:]
    if first["type"] == "json_invalid":
        return RequestRefused(f"the body is not valid JSON: {first['ctx']['error']}")
    return refused_by(first)
