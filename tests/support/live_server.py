"""`otter serve` in a thread of the test's process, on a free port of the loopback."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvicorn
from openai import OpenAI

from otter_cli.api.model import Otter, load
from otter_cli.serving.embedded.app import create_app
from otter_cli.serving.embedded.graft_service import GraftService
from otter_cli.serving.embedded.server import listen
from otter_cli.serving.options import ServeOptions


@dataclass
class Live:
    """A running server, and what its metrics say."""

    address: str
    service: GraftService

    @property
    def otter(self) -> Otter:
        return self.service.otter

    @property
    def port(self) -> int:
        return int(self.address.rpartition(":")[2])

    def client(self, **options: Any) -> Any:
        settings = {"api_key": "none", "max_retries": 0, "timeout": 120, **options}
        return OpenAI(base_url=f"{self.address}/v1", **settings)

    def metric(self, name: str, **labels: str) -> float:
        return self.service.metrics.registry.get_sample_value(name, labels) or 0.0

    def wait_until_idle(self, seconds: float = 20.0) -> None:
        """Returns once no row waits or runs; fails after `seconds`."""
        thread = self.service.model_thread
        end = time.monotonic() + seconds
        while thread.waiting or thread.batches:
            assert time.monotonic() < end, "rows are still waiting or running"
            time.sleep(0.02)


@contextmanager
def live_server(folder: Path, **options: Any) -> Iterator[Live]:
    settings = ServeOptions(folder=folder, port=0, **options)
    with listen(settings) as listener:
        service = GraftService(load(folder), settings)
        config = uvicorn.Config(create_app(service), access_log=False, log_level="warning")
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
        service.start()
        thread.start()
        try:
            yield Live(f"http://127.0.0.1:{listener.getsockname()[1]}", service)
        finally:
            server.should_exit = True
            thread.join(30)
            service.close()
