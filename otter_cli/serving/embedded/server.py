"""Runs `otter serve`: loads the graft, listens, and drains when it is told to stop."""

from __future__ import annotations

import signal
import socket
from typing import TYPE_CHECKING, Any

import uvicorn

from otter_cli.api.model import load
from otter_cli.core.console import say
from otter_cli.core.errors import from_os_error
from otter_cli.serving.embedded.app import create_app
from otter_cli.serving.embedded.graft_service import GraftService

if TYPE_CHECKING:
    from otter_cli.serving.options import ServeOptions


def serve_embedded(options: ServeOptions) -> dict[str, Any]:
    """Serves until SIGINT or SIGTERM, then lets running answers end. Returns what was served.
    Raises OtterError where the graft cannot be loaded, or the address is taken."""
    # The address first: a model may take a minute to load.
    with listen(options) as listener:
        otter = load(options.folder, base=options.base, device=options.device)
        service = GraftService(otter, options)
        config = uvicorn.Config(
            create_app(service),
            access_log=False,
            log_level="warning",
            server_header=False,
            lifespan="off",
            timeout_graceful_shutdown=max(1, round(options.drain)),
        )
        service.start()
        say(f"serving {options.name!r} at {_address(listener, options)}, for clients at /v1")
        try:
            # uvicorn raises a signal again once it has drained; the server has then done its work.
            for each in (signal.SIGINT, signal.SIGTERM):
                signal.signal(each, lambda *_: None)
            _DrainingServer(config).run(sockets=[listener])
        finally:
            service.close()
    return _summary(service)


class _DrainingServer(uvicorn.Server):
    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        if self.server_state.tasks and not self.force_exit:
            say("stopping: running answers may end; Ctrl-C again stops them")
        await super().shutdown(sockets)


def listen(options: ServeOptions) -> socket.socket:
    """A socket at the address. Raises OtterError where that is not possible."""
    family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
    try:
        return socket.create_server((options.host, options.port), family=family, backlog=512)
    except OSError as error:
        raise from_os_error(error, f"listen on {options.host}, port {options.port}") from error


def _address(listener: socket.socket, options: ServeOptions) -> str:
    host = f"[{options.host}]" if ":" in options.host else options.host
    return f"http://{host}:{listener.getsockname()[1]}"


def _summary(service: GraftService) -> dict[str, Any]:
    value = service.metrics.registry.get_sample_value
    tokens = value("otter_generated_tokens_total") or 0.0
    answers = sum(
        sample.value
        for metric in service.metrics.answers.collect()
        for sample in metric.samples
        if sample.name == "otter_answers_total"
    )
    return {"model": service.options.name, "answers": int(answers), "tokens": int(tokens)}
