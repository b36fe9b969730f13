"""`otter serve` under load: many clients at once, beside one at a time.

    python -m tests.performance.serve_load FOLDER --clients 50 --requests 20 --tokens 8,16,32

Starts the server, then clients as threads of this process. Every request has a prompt and an answer
of lengths drawn from the given ones, every other one asks for a signal. Prints the seconds of a
request (median and 95th percentile), tokens per second, how many were lost, and the memory of the
server at the start, after each fifth and at the end. Exits with 1 if one was lost.
"""

import argparse
import json
import os
import random
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil


@dataclass
class Load:
    """What the clients saw."""

    clients: int
    requests: int = 0
    lost: int = 0
    tried_again: int = 0
    tokens: int = 0
    seconds: float = 0.0
    p50: float = 0.0
    p95: float = 0.0
    tokens_per_second: float = 0.0
    server_megabytes: list[int] = field(default_factory=list)


class Client:
    """One client: its requests, one after the other."""

    def __init__(
        self, address: str, number: int, tokens: Sequence[int], signal: str | None
    ) -> None:
        self.address, self.tokens, self.signal = address, tokens, signal
        self.draw = random.Random(number)
        self.seconds: list[float] = []
        self.written = self.lost = self.tried_again = 0

    def run(self, count: int) -> None:
        with httpx.Client(timeout=600) as http:
            for number in range(count):
                started = time.perf_counter()
                if self._ask(http, signal=number % 2 == 1):
                    self.seconds.append(time.perf_counter() - started)
                else:
                    self.lost += 1

    def _ask(self, http: httpx.Client, *, signal: bool) -> bool:
        wanted = self.draw.choice(self.tokens)
        body: dict[str, Any] = {
            "prompt": "Once there was " + "a cat and " * self.draw.randrange(1, 12),
            "max_tokens": wanted,
            "temperature": 0.8,
            "seed": self.draw.randrange(1 << 30),
        }
        if signal and self.signal is not None:
            body["signals"] = [self.signal]
        while True:
            reply = http.post(f"{self.address}/v1/completions", json=body)
            if reply.status_code != 429:
                break
            self.tried_again += 1
            time.sleep(float(reply.headers["retry-after"]))
        if reply.status_code != 200:
            return False
        answer = reply.json()
        written = answer["usage"]["completion_tokens"]
        self.written += written
        ended = answer["choices"][0]["finish_reason"] == "stop" or written == wanted
        signals = answer["choices"][0].get("signals", {})
        return ended and all(len(each["tokens"]) == written for each in signals.values())


def run_load(
    address: str, server: psutil.Process, clients: int, requests: int, tokens: Sequence[int],
    signal: str | None,
) -> Load:  # fmt: skip
    """`clients` at once, `requests` each; memory is read after each fifth of them."""
    load = Load(clients)
    each = [Client(address, number, tokens, signal) for number in range(clients)]
    load.server_megabytes.append(server.memory_info().rss >> 20)
    started = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        for part in np.array_split(np.arange(requests), min(5, requests)):
            list(pool.map(Client.run, each, [len(part)] * clients))
            load.server_megabytes.append(server.memory_info().rss >> 20)
    load.seconds = time.perf_counter() - started
    seconds = [one for client in each for one in client.seconds]
    load.requests = clients * requests
    load.lost = sum(client.lost for client in each)
    load.tried_again = sum(client.tried_again for client in each)
    load.tokens = sum(client.written for client in each)
    load.p50, load.p95 = (float(np.quantile(seconds, q)) for q in (0.5, 0.95))
    load.tokens_per_second = load.tokens / load.seconds
    return load


def start_server(folder: Path, options: Sequence[str]) -> tuple[subprocess.Popen[str], str]:
    command = [sys.executable, "-m", "otter_cli", "serve", str(folder), "--port", "0", *options]
    environment = {**os.environ, "COLUMNS": "200"}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
    assert process.stderr is not None
    lines = []
    while line := process.stderr.readline():
        lines.append(line)
        if match := re.search(r"at (http://\S+?),", line):
            return process, match[1]
    raise SystemExit(f"the server ended before it listened:\n{''.join(lines)}")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--requests", type=int, default=20, help="of each client")
    parser.add_argument("--tokens", default="8,16,32", help="lengths of answers")
    parser.add_argument("--alone", type=int, default=20, help="requests of one client alone")
    parser.add_argument("--out", type=Path, help="file for the figures, as JSON")
    parser.add_argument("--serve", default="", help="further options of otter serve")
    given = parser.parse_args(arguments)
    tokens = [int(number) for number in given.tokens.split(",")]
    process, address = start_server(given.folder, given.serve.split())
    try:
        server = psutil.Process(process.pid)
        [model] = httpx.get(f"{address}/v1/models", timeout=120).json()["data"]
        names = [signal["name"] for signal in model["signals"]]
        signal = names[0] if names else None
        run_load(address, server, 2, 2, tokens, signal)  # the first requests compile and allocate
        alone = run_load(address, server, 1, given.alone, tokens, signal)
        together = run_load(address, server, given.clients, given.requests, tokens, signal)
    finally:
        process.terminate()
        process.wait(60)
    figures = {"alone": asdict(alone), "together": asdict(together)}
    for name, load in figures.items():
        print(name, json.dumps(load))
    if given.out is not None:
        given.out.write_text(json.dumps(figures, indent=1) + "\n")
    return int(bool(alone.lost or together.lost))


if __name__ == "__main__":
    raise SystemExit(main())
