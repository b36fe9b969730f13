"""What a server refuses, and how it says so; what a bad client can do, and what others notice."""

import json
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from otter_cli.core.errors import OtterError
from otter_cli.serving.options import ServeOptions
from tests.support.live_server import Live, live_server
from tests.unit.serving.embedded.test_answers import MESSAGES, chat, complete


@pytest.mark.parametrize(
    ("body", "param", "message"),
    [
        ({"signals": ["rewrd"]}, "signals", "did you mean 'reward'? its signals: reward, tone"),
        ({"guide": {"tonne": 1}}, "guide", "did you mean 'tone'?"),
        ({"guide": {"tone/rud": 1}}, "guide", "its labels: rude, kind"),
        ({"stop_when": "reward"}, "stop_when", "is no bound"),
        ({"stop_when": "future>1"}, "stop_when", "no signal 'future'"),
        ({"guide": {"reward": 1}, "guide_candidates": 5000}, None, "5000 candidates"),
        ({"signal": ["reward"]}, "signal", "did you mean 'signals'?"),
        ({"n": 0}, "n", "greater than or equal to 1"),
        ({"n": 1000}, None, "the queue holds"),
        ({"temperature": -1}, "temperature", "greater than or equal to 0"),
        ({"top_logprobs": 21}, "top_logprobs", "less than or equal to 20"),
        ({"max_tokens": 401}, "max_tokens", "this server writes 400"),
        ({"max_tokens": 100_000}, "messages", "exceeds the 512 tokens"),
        ({"frequency_penalty": 0.5}, None, "frequency_penalty is not supported"),
        ({"tools": [{"type": "function"}]}, None, "tools is not supported"),
        ({"stop": [""]}, "stop", "empty string"),
        ({"messages": []}, "messages", "at least 1 item"),
        ({"messages": [{"content": "x"}]}, "messages", "messages.0 has no role"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages",
         "a part that is not text"),
        ({"messages": [{"role": "user", "content": "x" * 600}]}, "messages", "exceeds the 512"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("streamed", [False, True])
def test_a_bad_request_gets_400_with_the_field_and_what_to_do(
    client: Any, body: dict[str, Any], param: str | None, message: str, streamed: bool
) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        chat(client, stream=streamed, extra_body=body)
    error = refused.value.body
    assert error["type"] == "invalid_request_error" and error["param"] == param
    assert message in error["message"]


@pytest.mark.parametrize("prompt", [[], [""], [[3, -1]], [[3, 97]], [[]]])
def test_a_prompt_without_meaning_gets_400(client: Any, prompt: Any) -> None:
    if prompt == [""]:  # the tokenizer writes BOS
        assert complete(client, prompt=prompt).choices[0].text
        return
    with pytest.raises(openai.BadRequestError):
        complete(client, prompt=prompt)


def test_what_asks_for_nothing_is_accepted(client: Any) -> None:
    plain = chat(client).choices[0].message.content
    neutral = {
        "frequency_penalty": 0,
        "tools": [],
        "user": "me",
        "logit_bias": None,
        "response_format": {"type": "text"},
        "signals": [],
        "guide": {"reward": 0},
    }
    assert chat(client, extra_body=neutral).choices[0].message.content == plain
    parts = [{"type": "text", "text": "hel"}, {"type": "text", "text": "lo"}]
    in_parts = chat(client, messages=[{"role": "user", "content": parts}])
    assert in_parts.choices[0].message.content == plain


def test_unknown_models_and_paths_get_404_and_no_json_gets_400(live: Live, client: Any) -> None:
    with pytest.raises(openai.NotFoundError, match="this server has 'toy'"):
        chat(client, model="gpt")
    with pytest.raises(openai.NotFoundError):
        client.post("/embeddings", body={}, cast_to=object)
    path = f"{live.address}/v1/chat/completions"
    bad = httpx.post(path, content=b"{nope", headers={"content-type": "application/json"})
    assert bad.status_code == 400 and "not valid JSON" in bad.json()["error"]["message"]
    # A page of a stranger can send such a request without asking the browser.
    simple = httpx.post(path, content=json.dumps({"messages": MESSAGES}).encode())
    assert simple.status_code == 400
    assert httpx.get(path).status_code == 405


def test_a_full_queue_gets_429_and_the_official_client_gets_through(chat_graft: Path) -> None:
    with live_server(chat_graft, max_queue=2, max_batch=1) as small:
        refusals = []

        def ask(number: int, retries: int) -> int:
            try:
                chat(small.client(max_retries=retries), max_tokens=60)
            except openai.RateLimitError as error:
                refusals.append(error)
                return 429
            return 200

        with ThreadPoolExecutor(12) as pool:
            first = list(pool.map(ask, range(12), [0] * 12))
            assert 429 in first and first.count(200) >= 3
            for error in refusals:
                assert 1 <= int(error.response.headers["retry-after"]) <= 60
                assert error.body["type"] == "overloaded_error"
            assert list(pool.map(ask, range(6), [20] * 6)) == [200] * 6
        refused = small.metric("otter_requests_total", path="/v1/chat/completions", status="429")
        assert refused >= first.count(429)


def test_a_client_that_goes_away_frees_its_rows(live: Live, client: Any, endless: None) -> None:
    def cancelled() -> float:
        return live.metric("otter_answers_total", finish="cancelled")

    before = cancelled()
    stream = chat(client, stream=True, n=2, max_tokens=400, extra_body={"signals": ["reward"]})
    for _, _ in zip(stream, range(5), strict=False):
        pass
    stream.close()
    live.wait_until_idle()
    assert cancelled() >= before + 1
    with pytest.raises(openai.APITimeoutError):
        live.client(timeout=0.3).chat.completions.create(
            model="toy", messages=MESSAGES, max_tokens=400, n=8, temperature=1, seed=1
        )
    live.wait_until_idle()
    assert chat(client).choices[0].finish_reason == "length"


def test_ten_megabytes_get_413_and_stay_out_of_memory(live: Live, client: Any) -> None:
    import psutil

    before = psutil.Process().memory_info().rss
    with pytest.raises(openai.APIStatusError) as refused:
        chat(client, messages=[{"role": "user", "content": "x" * 10_000_000}])
    assert refused.value.status_code == 413
    assert "1,000,000 bytes" in refused.value.body["message"]

    def chunks() -> Any:  # a body without its length
        yield b'{"messages": "'
        for _ in range(100):
            yield b"x" * 100_000

    path = f"{live.address}/v1/chat/completions"
    sent = httpx.post(path, content=chunks(), headers={"content-type": "application/json"})
    assert sent.status_code == 413 and sent.json()["error"]["type"] == "invalid_request_error"
    # The client's own copies are in this process too.
    assert psutil.Process().memory_info().rss - before < 100_000_000


def test_a_slow_reader_keeps_nobody_waiting(live: Live, client: Any, endless: None) -> None:
    body = json.dumps({"messages": MESSAGES, "max_tokens": 150, "temperature": 0, "stream": True,
                       "n": 2, "logprobs": True, "top_logprobs": 20}).encode()  # fmt: skip
    with socket.create_connection(("127.0.0.1", live.port)) as slow:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        slow.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n"
            b"Content-Type: application/json\r\nConnection: close\r\n"
            + f"Content-Length: {len(body)}\r\n\r\n".encode()
            + body
        )
        assert slow.recv(100)
        assert chat(client).choices[0].finish_reason == "length"
        live.wait_until_idle(60)  # its rows end although nobody reads
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        received = b""
        while part := slow.recv(65536):
            received += part
            time.sleep(0.001)
    assert received.rstrip().endswith(b"data: [DONE]\n\n\r\n0") and len(received) > 300_000


def test_a_key_is_needed_where_one_is_set(chat_graft: Path) -> None:
    with live_server(chat_graft, api_key="secret") as server:
        assert chat(server.client(api_key="secret")).choices
        for key in ("wrong", "secrets", "Bearer secret"):
            with pytest.raises(openai.AuthenticationError):
                server.client(api_key=key).models.list()
        assert httpx.get(f"{server.address}/health").json() == {"status": "ok"}
        assert httpx.get(f"{server.address}/v1/models").status_code == 401


def test_a_loopback_server_answers_to_its_own_names_only(live: Live) -> None:
    path = f"{live.address}/v1/models"
    for host in ("localhost", "127.0.0.1:1234", "[::1]"):
        assert httpx.get(path, headers={"host": host}).status_code == 200
    for host in ("evil.example", "127.0.0.1.evil.example", "", "[::1"):
        assert httpx.get(path, headers={"host": host}).status_code in (400, 403)


def test_every_answer_confines_what_a_browser_does_with_it(live: Live) -> None:
    for path in ("/health", "/nothing", "/metrics"):
        headers = httpx.get(live.address + path).headers
        assert "default-src 'none'" in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize("options", [{"port": 70000}, {"api_key": ""}, {"api_key": "schlüssel"}])
def test_options_without_meaning(options: dict[str, Any]) -> None:
    with pytest.raises(OtterError):
        ServeOptions(folder=Path("x"), **options)
