"""What a request must pass before it is read: the name of the host, the key, the size of the body.

`Guards` is an ASGI middleware: it works on the connection, so a body that is too large is refused
before it is in memory. It also sets the headers that confine the page, and counts requests.
"""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import Awaitable, Callable, MutableMapping
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from otter_cli.serving.signal_schema import error_body

if TYPE_CHECKING:
    from otter_cli.serving.embedded.metrics import Metrics

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

# The page loads its own files and calls this server, and nothing else.
_POLICY = (
    b"default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    b"img-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = [
    (b"content-security-policy", _POLICY),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
]

# Bytes of a body that is too large: beyond, the connection is closed.
_MOST_DISCARDED = 64 << 20


class Guards:
    """`hosts`: names by which a browser may call the server, None: any. `known`: the paths that
    are counted under their own name."""

    def __init__(
        self,
        app: App,
        *,
        metrics: Metrics,
        known: frozenset[str],
        hosts: set[str] | None,
        api_key: str | None,
        max_body: int,
    ) -> None:
        self.app, self.metrics, self.known = app, metrics, known
        self.hosts, self.api_key, self.max_body = hosts, api_key, max_body

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        path = scope["path"] if scope["path"] in self.known else "other"

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", []), *_HEADERS]}
                self.metrics.requests.labels(path, str(message["status"])).inc()
            await send(message)

        headers = {name.lower(): value for name, value in scope["headers"]}
        if refusal := self._refusal(scope["path"], headers):
            await _refuse(send_guarded, *refusal)
            return
        length = headers.get(b"content-length", b"")
        body = _LimitedBody(receive, send_guarded, self.max_body)
        body.too_large = length.isdigit() and int(length) > self.max_body
        try:
            if not body.too_large:
                await self.app(scope, body.receive, body.send)
        except asyncio.CancelledError:
            # The server stops before the answer has ended, and cancels what is left.
            if not body.answered:
                message = "the server was stopped before it answered"
                await _refuse(send_guarded, 503, error_body(message, kind="server_error"), {})
            return
        if body.too_large and not body.answered:
            await body.discard()
            message = f"the body has more than {self.max_body:,} bytes; --max-body sets this"
            await _refuse(send_guarded, 413, error_body(message), {"connection": "close"})

    def _refusal(
        self, path: str, headers: dict[bytes, bytes]
    ) -> tuple[int, dict[str, Any], dict[str, str]] | None:
        """Status, body and headers of a refusal by the request's headers."""
        host = _host_name(headers.get(b"host", b"").decode("latin-1"))
        if self.hosts is not None and host not in self.hosts:
            message = f"this server does not answer to the name {host!r}; --allow-host allows it"
            return 403, error_body(message, kind="permission_error"), {}
        if self.api_key is not None and path.startswith("/v1/"):
            given = headers.get(b"authorization", b"").decode("latin-1")
            if not secrets.compare_digest(given.encode(), f"Bearer {self.api_key}".encode()):
                message = "the request has no valid key: send Authorization: Bearer KEY"
                wanted = {"www-authenticate": "Bearer"}
                return 401, error_body(message, kind="authentication_error"), wanted
        return None


class _LimitedBody:
    """The body of a request, which may come without its length. Once it is too large, what the
    application answers is dropped."""

    def __init__(self, receive: Receive, send: Send, most: int) -> None:
        self._receive, self._send, self.most = receive, send, most
        self.total, self.too_large, self.answered = 0, False, False

    async def receive(self) -> Message:
        message = await self._receive()
        self.total += len(message.get("body", b""))
        if self.total > self.most:
            self.too_large = True
            return {"type": "http.request", "body": b"", "more_body": False}
        return message

    async def send(self, message: Message) -> None:
        if self.too_large and not self.answered:
            return
        self.answered = True
        await self._send(message)

    async def discard(self) -> None:
        """Reads the rest: a client that is still sending would see a broken connection, and no
        answer."""
        while self.total < _MOST_DISCARDED:
            message = await self._receive()
            self.total += len(message.get("body", b""))
            if not message.get("more_body", False):
                return


def _host_name(host: str) -> str:
    """The name in a Host header, without the port."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


async def _refuse(send: Send, status: int, body: dict[str, Any], headers: dict[str, str]) -> None:
    data = json.dumps(body).encode()
    fields = {
        "content-type": "application/json", "content-length": str(len(data)), **headers,
    }  # fmt: skip
    encoded = [(name.encode(), value.encode()) for name, value in fields.items()]
    await send({"type": "http.response.start", "status": status, "headers": encoded})
    await send({"type": "http.response.body", "body": data})
