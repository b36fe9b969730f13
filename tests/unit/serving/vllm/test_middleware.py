"""The middleware over a small application that answers as vLLM does."""

import asyncio
import json
import math
from collections.abc import Iterator
from typing import Any

import pytest

from otter_cli.serving.vllm import middleware
from otter_cli.serving.vllm.engine_checks import ANNOUNCED_SIGNALS
from otter_cli.serving.vllm.middleware import SignalsMiddleware
from otter_cli.serving.vllm.requests import FIRST_VIRTUAL_ID, SignalOutputs
from otter_cli.signals.config import parse_signal

SIGNALS = ("reward", "tone=classes:a,b", "value=vocabulary:8", "future:2")
PROMPT, TOKENS = [5, 6], [11, 12, 13]
CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
# The numbers where each token was chosen, and after the last: reward, tone.a, tone.b, value.
ROWS = {t: [0.5 * t, -1.0, t - 1.0, 10.0 + t] for t in range(4)}
Message = dict[str, Any]


@pytest.fixture(autouse=True)
def served(monkeypatch: pytest.MonkeyPatch) -> None:
    outputs = SignalOutputs(parse_signal(text) for text in SIGNALS)
    monkeypatch.setitem(ANNOUNCED_SIGNALS, "graft", outputs)

    class LastRow:
        """The step after the last token."""

        def __init__(self, engine: Any, plan: Any) -> None:
            self.places = range(4)

        async def __call__(self, tokens: list[int]) -> dict[int, float]:
            assert tokens == PROMPT + TOKENS
            return dict(enumerate(ROWS[3]))

    monkeypatch.setattr(middleware, "LastRowReader", LastRow)


def in_json(number: float) -> float | None:
    """vLLM clips numbers, and pydantic writes null for NaN."""
    return None if math.isnan(number) else max(number, -9999.0)


class Vllm:
    """Answers a body with the numbers that it asks for. `end_at`: the token at which the engine
    ends the answer by its end token. `cut`: events after which a stream breaks off."""

    def __init__(self, end_at: int | None = None, cut: int | None = None, split: int = 10**6):
        self.end_at, self.cut, self.split = end_at, cut, split
        self.body: bytes | None = None
        self.after: Message | None = None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        message = await receive()
        self.body = message["body"]
        while message["more_body"]:
            message = await receive()
            self.body += message["body"]
        length = dict(scope["headers"])[b"content-length"]
        assert int(length) == len(self.body)
        if dict(scope["headers"]).get(b"authorization") == b"wrong":
            await self.send(send, 401, b'{"error": "Unauthorized"}')
            return
        body = json.loads(self.body)
        if "model" not in body:
            await self.send(send, 400, b'{"error": "no model"}')
            return
        self.after = await receive()
        if body.get("stream"):
            events = self.events(body, chat=scope["path"] == CHAT)
            parts = [f"data: {json.dumps(event)}\n\n" for event in events]
            content = ": keep-alive\n\n" + "".join(parts) + "data: [DONE]\n\n"
            await self.send(send, 200, content.encode(), "text/event-stream; charset=utf-8")
        else:
            await self.send(send, 200, json.dumps(self.whole(body, scope["path"] == CHAT)).encode())

    async def send(
        self, send: Any, status: int, content: bytes, kind: str = "application/json"
    ) -> None:
        headers = [(b"content-type", kind.encode()), (b"x-engine", b"same")]
        if kind == "application/json":
            headers.append((b"content-length", str(len(content)).encode()))
        await send({"type": "http.response.start", "status": status, "headers": headers})
        for start in range(0, len(content), self.split):
            part = content[start : start + self.split]
            await send({"type": "http.response.body", "body": part, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    @property
    def tokens(self) -> list[int]:
        return TOKENS if self.end_at is None else [*TOKENS[: self.end_at], 2]

    def logprobs(self, body: Message, chat: bool, start: int, end: int) -> Any:
        arguments = body.get("vllm_xargs", {})
        names, places = arguments.get("otter_signals", []), []
        for name in names:
            places += ANNOUNCED_SIGNALS["graft"].places_of([name])
        steps = [
            [(f"t{self.tokens[t]}", -0.5)]
            + [(f"token_id:{FIRST_VIRTUAL_ID + p}", in_json(ROWS[t][p])) for p in places]
            + [("best", -0.1), ("next", -0.7)]
            for t in range(start, end)
        ]
        if not chat:
            if (count := body.get("logprobs")) is None:
                return None
            tables = [dict(step[: count + 1]) for step in steps]
            return {"tokens": [step[0][0] for step in steps], "top_logprobs": tables}
        if not body.get("logprobs"):
            return None
        count = body["top_logprobs"]
        content = [
            {
                "token": step[0][0],
                "top_logprobs": [{"token": t, "logprob": p} for t, p in step[:count]],
            }
            for step in steps
        ]
        return {"content": content}

    def choice(self, body: Message, chat: bool, start: int, end: int) -> Message:
        ids = self.tokens[start:end] if body.get("return_token_ids") else None
        finish = None
        if end == len(self.tokens):
            finish = "length" if self.end_at is None else "stop"
        logprobs = self.logprobs(body, chat, start, end)
        choice = {"index": 0, "logprobs": logprobs, "finish_reason": finish, "token_ids": ids}
        text = "".join(f"t{id} " for id in self.tokens[start:end] if id != 2)
        if not chat:
            return {**choice, "text": text}
        key = "delta" if body.get("stream") else "message"
        return {**choice, key: {"content": text}}

    def usage(self) -> Message:
        return {"completion_tokens": len(self.tokens), "total_tokens": 2 + len(self.tokens)}

    def whole(self, body: Message, chat: bool) -> Message:
        choice, ids = self.choice(body, chat, 0, len(self.tokens)), PROMPT
        answer: Message = {"id": "é", "choices": [choice], "usage": self.usage()}
        holder = answer if chat else choice
        holder["prompt_token_ids"] = ids if body.get("return_token_ids") else None
        return answer

    def events(self, body: Message, chat: bool) -> Iterator[Message]:
        ids = PROMPT if body.get("return_token_ids") else None
        if chat:
            first = {"index": 0, "delta": {"role": "assistant"}, "finish_reason": None}
            yield {"choices": [first], "prompt_token_ids": ids}
        for t in range(len(self.tokens)):
            if t == self.cut:
                yield {"error": {"message": "out of memory"}}
                return
            choice = self.choice(body, chat, t, t + 1)
            if t == 0 and not chat:
                choice["prompt_token_ids"] = ids
            yield {"id": "é", "choices": [choice]}
        yield {"choices": [], "usage": self.usage()}


def call(
    app: Any, path: str, content: bytes, method: str = "POST", **headers: str
) -> list[Message]:
    """The messages that a client gets. The body comes in two parts, and then it goes away."""
    parts = [(content[:3], True), (content[3:], False)]
    messages = [{"type": "http.request", "body": b, "more_body": more} for b, more in parts]
    messages.append({"type": "http.disconnect"})
    sent: list[Message] = []

    async def receive() -> Message:
        return messages.pop(0)

    async def send(message: Message) -> None:
        sent.append(message)

    listed = [(name.encode(), value.encode()) for name, value in headers.items()]
    listed.append((b"content-length", str(len(content)).encode()))
    scope = {"type": "http", "method": method, "path": path, "headers": listed}
    state = type("State", (), {"engine_client": None})
    scope["app"] = type("App", (), {"state": state})
    asyncio.run(app(scope, receive, send))
    return sent


def answer(app: Any, path: str, body: Message, **headers: str) -> tuple[int, Any]:
    """Status and decoded body; of a stream its events, without the last and without comments."""
    start, *rest = call(SignalsMiddleware(app), path, json.dumps(body).encode(), **headers)
    content = b"".join(message["body"] for message in rest)
    named = dict(start["headers"])
    if b"text/event-stream" not in named[b"content-type"]:
        assert int(named[b"content-length"]) == len(content)
        return start["status"], json.loads(content)
    *events, end, empty = content.split(b"\n\n")
    assert (end, empty) == (b"data: [DONE]", b"")
    return start["status"], [json.loads(e[6:]) for e in events if not e.startswith(b":")]


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


REWARDS, VALUES = [0.5, 1.0, 1.5], [10.0, 11.0, 12.0]
TONES = [[sigmoid(-1), sigmoid(t)] for t in (0, 1, 2)]


@pytest.mark.parametrize(
    "content",
    [
        b'{"model": "m", "prompt": "x"}',
        b'{"model": "m", "prompt": "\\"signals\\": guide, stop_when", "stream": true}',
        b'{"model": "m", "prompt": "\\u00e9", "logprobs": 2}',
        b'{"model": "m", "vllm_xargs": {"otter_signals": ["reward"]}, "logprobs": 1}',
        b'{"prompt": ["signals"]}',
    ],
)
@pytest.mark.parametrize("path", [COMPLETIONS, CHAT, "/v1/embeddings"])
def test_without_our_fields_every_message_passes_as_it_is(path: str, content: bytes) -> None:
    if path == CHAT:
        content = content.replace(b'"logprobs": 2', b'"logprobs": true, "top_logprobs": 2')
        content = content.replace(b'"logprobs": 1', b'"logprobs": true, "top_logprobs": 2')

    stock, ours = Vllm(split=9), Vllm(split=9)
    assert call(SignalsMiddleware(ours), path, content) == call(stock, path, content)
    assert ours.body == stock.body == content
    assert (
        ours.after == stock.after == ({"type": "http.disconnect"} if b"model" in content else None)
    )


@pytest.mark.parametrize("path", [COMPLETIONS, CHAT])
def test_fields_that_ask_for_nothing_are_left_out(path: str) -> None:
    plain = {"model": "m", "stream": True}
    app, stock = Vllm(), Vllm()
    empty = {**plain, "signals": [], "guide": {"value": 0.0}, "stop_when": None}
    assert answer(app, path, empty) == answer(stock, path, plain)
    assert json.loads(app.body or b"") == plain


@pytest.mark.parametrize("path", [COMPLETIONS, CHAT])
def test_a_value_is_that_of_the_text_with_the_token(path: str) -> None:
    body = {"model": "m", "signals": ["tone", "reward", "value"]}
    status, found = answer(Vllm(), path, body)
    (choice,) = found["choices"]
    assert status == 200 and found["id"] == "é"
    assert choice["signals"]["reward"] == {"tokens": REWARDS, "last": 1.5}
    # The score of the token itself, where it was chosen.
    assert choice["signals"]["value"] == {"tokens": VALUES, "last": 12.0}
    assert choice["signals"]["tone"]["tokens"] == [pytest.approx(tone) for tone in TONES]
    assert choice["signals"]["tone"]["labels"] == ["a", "b"]
    assert choice["logprobs"] is None and choice["token_ids"] is None
    assert choice["finish_reason"] == "length"
    assert found.get("prompt_token_ids") is None and choice.get("prompt_token_ids") is None


@pytest.mark.parametrize("path", [COMPLETIONS, CHAT])
@pytest.mark.parametrize("split", [1, 7, 10**6])
def test_a_stream_gives_each_token_its_own_value(path: str, split: int) -> None:
    body = {"model": "m", "signals": ["reward", "value"], "stream": True}
    _, events = answer(Vllm(split=split), path, body)
    usage = events.pop()
    assert usage == {"choices": [], "usage": {"completion_tokens": 3, "total_tokens": 5}}
    choices = [event["choices"][0] for event in events]
    if path == CHAT:
        role = choices.pop(0)
        assert role["delta"] == {"role": "assistant"} and "signals" not in role
    read = [choice["signals"] for choice in choices]
    assert [signals["reward"] for signals in read] == [{"tokens": [r], "last": r} for r in REWARDS]
    assert [signals["value"]["tokens"] for signals in read] == [[v] for v in VALUES]
    assert [choice["finish_reason"] for choice in choices] == [None, None, "length"]
    assert all(choice["logprobs"] is None for choice in choices)


@pytest.mark.parametrize("path", [COMPLETIONS, CHAT])
def test_a_stream_that_breaks_off_loses_no_text(path: str) -> None:
    body = {"model": "m", "signals": "reward", "stream": True}
    _, events = answer(Vllm(cut=2), path, body)
    assert events.pop() == {"error": {"message": "out of memory"}}
    read = [event["choices"][0]["signals"] for event in events[path == CHAT :]]
    assert [signals["reward"]["tokens"] for signals in read] == [[0.5], [None]]


@pytest.mark.parametrize("path", [COMPLETIONS, CHAT])
@pytest.mark.parametrize("wanted", [0, 1, 2])
@pytest.mark.parametrize("stream", [False, True])
def test_log_probabilities_are_those_of_a_request_without_signals(
    path: str, wanted: int, stream: bool
) -> None:
    logprobs = {"logprobs": True, "top_logprobs": wanted} if path == CHAT else {"logprobs": wanted}
    body = {"model": "m", "stream": stream, "return_token_ids": True, **logprobs}
    _, plain = answer(Vllm(), path, body)
    _, found = answer(Vllm(), path, {**body, "signals": ["reward", "tone"]})
    for event in found if stream else [found]:
        for choice in event["choices"]:
            choice.pop("signals", None)
    assert found == plain


@pytest.mark.parametrize("path", [COMPLETIONS, CHAT])
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("signals", [[], ["reward"]])
def test_the_engine_s_end_token_is_left_out_of_an_answer_that_a_bound_ended(
    path: str, stream: bool, signals: list[str]
) -> None:
    """The text crosses the bound with its second token."""
    body = {"model": "m", "stop_when": ["tone.a>0.9", "reward>=1"], "signals": signals}
    body |= {"stream": stream, "return_token_ids": True}
    app = Vllm(end_at=2)
    _, found = answer(app, path, body)
    arguments = json.loads(app.body or b"")["vllm_xargs"]
    assert arguments["otter_stop_when"] == ["tone.a>0.9", "reward>=1"]
    events = found if stream else [found]
    choices = [choice for event in events for choice in event["choices"]]
    assert choices[-1]["finish_reason"] == "content_filter"
    assert choices[-1]["stop_reason"] == "reward>=1"
    ids = [id for choice in choices for id in choice.get("token_ids") or []]
    assert ids == TOKENS[:2]
    read = [choice["signals"]["reward"]["tokens"] for choice in choices if "signals" in choice]
    assert [r for part in read for r in part] == (REWARDS[:2] if signals else [])
    assert events[-1]["usage"] == {"completion_tokens": 2, "total_tokens": 4}


def test_a_bound_that_the_last_token_alone_crosses_is_seen() -> None:
    body = {"model": "m", "stop_when": "reward>1.2"}
    _, found = answer(Vllm(), COMPLETIONS, body)
    assert found["choices"][0]["finish_reason"] == "content_filter"
    assert found["usage"]["completion_tokens"] == 3


def test_a_number_that_is_not_finite_ends_an_answer_and_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(ROWS, 2, [math.nan, 0.0, 0.0, 0.0])
    body = {"model": "m", "stop_when": "reward>100", "signals": "reward"}
    _, found = answer(Vllm(end_at=2), COMPLETIONS, body)
    (choice,) = found["choices"]
    assert choice["stop_reason"] == "reward>100: the signal is not finite"
    assert choice["signals"]["reward"] == {"tokens": [0.5, None], "last": None}


def test_a_guide_alone_changes_the_request_and_nothing_of_the_answer() -> None:
    app = Vllm()
    body = {"model": "m", "vllm_xargs": {"other": 1}}
    guided = {**body, "guide": {"value": 2.0}, "guide_candidates": 5}
    assert answer(app, CHAT, guided) == answer(Vllm(), CHAT, body)
    arguments = json.loads(app.body or b"")["vllm_xargs"]
    assert arguments == {
        "other": 1,
        "otter_guide": ["value"],
        "otter_strength": [2.0],
        "otter_candidates": 5,
        "otter_logprobs": False,
    }


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"signals": "rewart"}, "did you mean 'reward'"),
        ({"guide": {"reward": 1.0}}, "cannot guide in this engine"),
        ({"signals": "reward", "logprobs": -1}, "logprobs is -1"),
        ({"signals": "reward", "echo": True}, "echo and signals do not go together"),
        ({"stop_when": "reward>0", "ignore_eos": True}, "ignore_eos and stop_when"),
        ({"stop_when": "reward<-1e5"}, "lowest number"),
        ({"signals": "reward", "vllm_xargs": {"otter_guide": "value"}}, "otter_guide beside"),
    ],
)
def test_a_refusal_comes_after_the_key(body: Message, message: str) -> None:
    status, found = answer(Vllm(), COMPLETIONS, {"model": "m", **body})
    assert status == 400 and message in found["error"]["message"]
    status, found = answer(Vllm(), COMPLETIONS, {"model": "m", **body}, authorization="wrong")
    assert (status, found) == (401, {"error": "Unauthorized"})


def test_an_engine_without_signals_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ANNOUNCED_SIGNALS, "graft", None)
    status, found = answer(Vllm(), CHAT, {"model": "m", "signals": "reward"})
    assert status == 400 and "this engine drafts" in found["error"]["message"]
    monkeypatch.delitem(ANNOUNCED_SIGNALS, "graft")
    status, found = answer(Vllm(), CHAT, {"model": "m", "signals": "reward"})
    assert status == 400 and "no signal 'reward'" in found["error"]["message"]


def test_models_carry_the_descriptions_of_the_signals() -> None:
    async def models(scope: Any, receive: Any, send: Any) -> None:
        content = b'{"data":[{"id":"m"}]}'
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": content})

    start, body = call(SignalsMiddleware(models), "/v1/models", b"", method="GET")
    (entry,) = json.loads(body["body"])["data"]
    assert entry["id"] == "m" and entry["signals_schema"] == 1
    assert [signal["name"] for signal in entry["signals"]] == ["reward", "tone", "value"]
    assert dict(start["headers"])[b"content-length"] == str(len(body["body"])).encode()
