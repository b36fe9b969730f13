"""Signals in OpenAI's schema from vLLM's server, through the official client."""

import json
import re
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from otter_cli.serving.signal_schema import STOP_WHEN_FINISH
from tests.vllm.serving import serve
from tests.vllm.support import reference

CLIENTS = 10
TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant:"
MIDDLEWARE = ("--middleware", "otter_cli.serving.vllm.middleware.SignalsMiddleware")
MESSAGES = [{"role": "user", "content": "What is a good name for a cat?"}]
NAMES = ["reward", "toxicity", "tone", "value"]


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("server") / "template"
    path.write_text(TEMPLATE)
    return path


@pytest.fixture(scope="module")
def server(served: dict[str, Path], template: Path) -> Iterator[str]:
    more = ["--chat-template", str(template), *MIDDLEWARE]
    with serve(served["base"], template.parent / "log", *more) as address:
        yield f"{address}/v1"


@pytest.fixture(scope="module")
def client(server: str) -> Any:
    from openai import OpenAI

    return OpenAI(base_url=server, api_key="none", timeout=600, max_retries=0)


def complete(client: Any, prompt: list[int], **body: Any) -> Any:
    """The answer, with the ids of its tokens."""
    body = {"return_token_ids": True, **body}
    return client.completions.create(
        model="graft", prompt=prompt, temperature=0, max_tokens=12, extra_body=body
    ).choices[0]


def chat(client: Any, stream: bool = False, logprobs: bool = False, **body: Any) -> Any:
    top = {"logprobs": True, "top_logprobs": 3} if logprobs else {}
    return client.chat.completions.create(
        model="graft",
        messages=MESSAGES,
        temperature=0,
        max_tokens=12,
        stream=stream,
        extra_body={"return_token_ids": True, **body},
        **top,
    )


@torch.no_grad()
def expected(graft: Path, prompt: list[int], tokens: list[int]) -> dict[str, list[float]]:
    """By one pass of `model(...)` over the whole text: the values after each token, and of the
    signal of next tokens the score of the token itself."""
    text = prompt + tokens
    signals = reference(graft)(torch.tensor([text]), signals=NAMES).signals
    after = {name: signals[name][0, len(prompt) :].float() for name in NAMES}
    before = signals["value"][0, len(prompt) - 1 : -1].float()
    after["value"] = before.gather(-1, torch.tensor(tokens)[:, None])
    classes = {name: after[name].sigmoid() for name in ("toxicity", "tone")}
    return {name: each.flatten().tolist() for name, each in {**after, **classes}.items()}


def flat(tokens: list[Any]) -> list[float]:
    return [x for value in tokens for x in (value if isinstance(value, list) else [value])]


def test_ten_clients_at_once_get_the_values_of_the_model(
    client: Any, grafts: dict[str, Path]
) -> None:
    prompts = [[10 + i, 200 + 3 * i, 77, 400 + i] for i in range(CLIENTS)]

    def ask(i: int) -> Any:
        if i % 3 == 0:
            return complete(client, prompts[i], guide={"value": float(i - 5)})
        return complete(client, prompts[i], signals=NAMES if i % 2 else ["reward"])

    with ThreadPoolExecutor(CLIENTS) as pool:
        answers = list(pool.map(ask, range(CLIENTS)))
    guided = 0
    for i, choice in enumerate(answers):
        assert choice.text == ask(i).text
        assert choice.logprobs is None
        plain = complete(client, prompts[i])
        assert "signals" not in plain.model_dump()
        if i % 3 == 0:
            assert "signals" not in choice.model_dump()
            guided += choice.token_ids != plain.token_ids
            continue
        assert choice.token_ids == plain.token_ids
        wanted = expected(grafts["base"], prompts[i], choice.token_ids)
        assert list(choice.signals) == (NAMES if i % 2 else ["reward"])
        for name, series in choice.signals.items():
            assert len(series["tokens"]) == len(choice.token_ids)
            assert series["last"] == series["tokens"][-1]
            assert flat(series["tokens"]) == pytest.approx(wanted[name], abs=1e-4)
    assert guided


def test_each_piece_of_a_stream_has_the_values_of_its_own_tokens(client: Any) -> None:
    whole = chat(client, signals=NAMES).choices[0]
    role, *pieces = [piece.choices[0] for piece in chat(client, True, signals=NAMES)]
    assert role.delta.role == "assistant" and "signals" not in role.model_dump()
    read: dict[str, list[Any]] = {name: [] for name in NAMES}
    for piece in pieces:
        assert piece.token_ids and list(piece.signals) == NAMES
        for name, series in piece.signals.items():
            assert len(series["tokens"]) == len(piece.token_ids)
            read[name] += series["tokens"]
    assert "".join(piece.delta.content or "" for piece in pieces) == whole.message.content
    assert [id for piece in pieces for id in piece.token_ids] == whole.token_ids
    for name, values in read.items():
        series = whole.signals[name]["tokens"]
        assert len(values) == len(series)
        assert flat(values) == pytest.approx(flat(series), abs=1e-5)
    assert whole.signals["tone"]["labels"] == ["a", "b"]


def test_several_prompts_and_answers_each_have_their_own(
    client: Any, grafts: dict[str, Path]
) -> None:
    prompts = [[10, 200, 77], [11, 203, 77, 401]]
    arguments = {"prompt": prompts, "n": 2, "temperature": 0.9, "seed": 5, "max_tokens": 6}
    body = {"return_token_ids": True, "signals": "reward"}
    whole = client.completions.create(model="graft", **arguments, extra_body=body)
    pieces = client.completions.create(model="graft", **arguments, extra_body=body, stream=True)
    streamed: dict[int, tuple[list[int], list[float]]] = {i: ([], []) for i in range(4)}
    for piece in pieces:
        for choice in piece.choices:
            ids, values = streamed[choice.index]
            ids += choice.token_ids
            values += choice.signals["reward"]["tokens"]
    assert len(whole.choices) == 4
    for choice in whole.choices:
        wanted = expected(grafts["base"], prompts[choice.index // 2], choice.token_ids)["reward"]
        assert choice.signals["reward"]["tokens"] == pytest.approx(wanted, abs=1e-4)
        ids, values = streamed[choice.index]
        assert ids == choice.token_ids and values == pytest.approx(wanted, abs=1e-4)


def test_log_probabilities_stay_as_the_client_wants_them(client: Any) -> None:
    plain = chat(client, logprobs=True).choices[0].logprobs.model_dump()
    beside = chat(client, logprobs=True, signals=NAMES).choices[0]
    assert len(beside.signals["reward"]["tokens"]) == len(plain["content"])
    assert same(beside.logprobs.model_dump(), plain)
    for count in (0, 2):
        stock = complete(client, [10, 200, 77, 400], logprobs=count).logprobs.model_dump()
        other = complete(client, [10, 200, 77, 400], logprobs=count, signals=["reward"])
        assert same(other.logprobs.model_dump(), stock)


def same(ours: Any, stock: Any) -> bool:
    """Equal but for the last bits of numbers."""
    if isinstance(stock, dict):
        return list(ours) == list(stock) and all(same(ours[k], stock[k]) for k in stock)
    if isinstance(stock, list):
        return len(ours) == len(stock) and all(map(same, ours, stock))
    return ours == pytest.approx(stock, abs=1e-5) if isinstance(stock, float) else ours == stock


def bound_at(values: list[float]) -> tuple[int, float]:
    """A place in the middle of a text, and a bound that is crossed there for the first time."""
    for place in range(2, len(values) - 2):
        before = max(values[:place])
        if values[place] > before + 1e-3:
            return place, (values[place] + before) / 2
    pytest.fail("no value of the text is above all before it")


@pytest.mark.parametrize("signal", ["reward", "tone.b"])
def test_an_answer_ends_at_the_first_token_where_a_bound_holds(client: Any, signal: str) -> None:
    name, _, label = signal.partition(".")
    for start in range(10, 60):
        prompt = [start, 200, 77, 400]
        plain = complete(client, prompt, signals=name)
        values = [value[1] if label else value for value in plain.signals[name]["tokens"]]
        if any(values[i] > max(values[:i]) + 1e-3 for i in range(2, len(values) - 2)):
            break
    place, bound = bound_at(values)
    stop_when = f"{signal}>{bound!r}"
    ended = complete(client, prompt, signals=name, stop_when=stop_when)
    assert ended.token_ids == plain.token_ids[: place + 1]
    assert ended.finish_reason == STOP_WHEN_FINISH and ended.stop_reason == stop_when
    assert plain.text.startswith(ended.text) and ended.text
    series = ended.signals[name]["tokens"]
    assert flat(series) == pytest.approx(flat(plain.signals[name]["tokens"][: place + 1]), abs=1e-5)
    # Without a request for the signal, and as a stream.
    quiet = client.completions.create(
        model="graft",
        prompt=prompt,
        temperature=0,
        max_tokens=12,
        extra_body={"stop_when": [stop_when]},
    )
    assert quiet.choices[0].text == ended.text
    assert "signals" not in quiet.choices[0].model_dump() and quiet.choices[0].logprobs is None
    assert quiet.usage.completion_tokens == place + 1
    pieces = list(
        client.completions.create(
            model="graft",
            prompt=prompt,
            temperature=0,
            max_tokens=12,
            stream=True,
            stream_options={"include_usage": True},
            extra_body={"stop_when": stop_when},
        )
    )
    assert "".join(c.text for piece in pieces for c in piece.choices) == ended.text
    reasons = [c.finish_reason for piece in pieces for c in piece.choices if c.finish_reason]
    assert reasons == [STOP_WHEN_FINISH]
    assert pieces[-1].usage.completion_tokens == place + 1
    # A bound that holds at the last token alone is seen, too.
    last = complete(client, prompt, max_tokens=place + 1, stop_when=stop_when)
    assert last.finish_reason == STOP_WHEN_FINISH and last.token_ids == ended.token_ids


def test_a_bound_that_nothing_crosses_changes_nothing(client: Any) -> None:
    plain = complete(client, [10, 200, 77, 400])
    bounded = complete(client, [10, 200, 77, 400], stop_when=["reward>1e6", "tone.a<-1"])
    assert bounded.model_dump() == plain.model_dump()


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"signals": ["rewart"]}, "did you mean 'reward'"),
        ({"signals": "future"}, "no signal 'future'"),
        ({"guide": {"reward": 1.0}}, "cannot guide in this engine"),
        ({"guide": {"value": "strong"}}, "guide.value"),
        ({"stop_when": "reward"}, "no bound"),
        ({"stop_when": "tone.c>0.5"}, "no label 'c'"),
        ({"stop_when": "reward<-99999"}, "lowest number"),
        ({"signals": "reward", "echo": True}, "echo"),
        ({"signals": "reward", "vllm_xargs": {"otter_signals": "tone"}}, "vllm_xargs"),
        ({"stop_when": "reward>1", "ignore_eos": True}, "ignore_eos"),
    ],
)
def test_what_has_no_meaning_is_status_400_with_a_message(
    client: Any, body: dict[str, Any], message: str
) -> None:
    from openai import BadRequestError

    with pytest.raises(BadRequestError) as error:
        complete(client, [10, 200], **body)
    assert error.value.status_code == 400 and message in str(error.value)


def post(url: str, body: dict[str, Any], key: str | None = None) -> tuple[int, bytes]:
    """Status and bytes of an answer. The id is that of the request; the time is replaced, and
    vLLM's fingerprint of the engine's settings, which name the folder."""
    headers = {"Content-Type": "application/json", "X-Request-Id": "same"}
    if key is not None:
        headers["Authorization"] = f"Bearer {key}"
    request = urllib.request.Request(url, json.dumps(body).encode(), headers)
    try:
        with urllib.request.urlopen(request, timeout=600) as answer:
            content = re.sub(rb'"created":\d+', b'"created":0', answer.read())
            return answer.status, re.sub(rb'"vllm-[^"]+"', b'"vllm"', content)
    except urllib.error.HTTPError as error:
        return error.code, error.read()


TEXT = {"prompt": '"signals": guide, stop_when'}  # names of fields in a text are no fields
PLAIN: list[tuple[str, dict[str, Any]]] = [
    (path, {"model": "graft", "temperature": 0, "max_tokens": 8, **body, **more})
    for path, body, logprobs in (
        ("chat/completions", {"messages": MESSAGES}, {"logprobs": True, "top_logprobs": 2}),
        ("completions", {"prompt": [10, 200, 77]}, {"logprobs": 2}),
        ("completions", TEXT, {"logprobs": 0, "n": 2}),
        ("completions", {"prompt": -1}, {}),
    )
    for more in ({}, {"stream": True}, {"temperature": 0.8, "seed": 7, "n": 2}, logprobs)
]
TRIES = 3


def answers(address: str) -> list[set[tuple[int, bytes]]]:
    """The answers to each request, tried several times: where a server is slow to write a stream,
    vLLM puts tokens together."""
    return [{post(f"{address}/{path}", body) for _ in range(TRIES)} for path, body in PLAIN]


def test_a_request_without_our_fields_gets_the_bytes_of_stock(
    server: str, base: Path, template: Path
) -> None:
    """Stock vLLM over the base, and vLLM over the graft with the middleware."""
    ours = answers(server)
    with serve(base, template.parent / "stock", "--chat-template", str(template)) as address:
        stock = answers(f"{address}/v1")
    for (path, body), mine, theirs in zip(PLAIN, ours, stock, strict=True):
        assert mine & theirs, (path, body, mine, theirs)
        if not body.get("stream"):
            assert mine == theirs and len(mine) == 1
    assert {status for each in stock for status, _ in each} == {200, 400}


def test_models_name_the_signals_and_a_key_is_asked_for_first(
    server: str, served: dict[str, Path], template: Path
) -> None:
    with urllib.request.urlopen(f"{server}/models", timeout=60) as answer:
        (model,) = json.load(answer)["data"]
    assert model["id"] == "graft"
    assert [signal["name"] for signal in model["signals"]] == NAMES
    more = ["--api-key", "secret", *MIDDLEWARE]
    with serve(served["base"], template.parent / "key", *more) as address:
        url, wrong = f"{address}/v1/completions", {"model": "graft", "prompt": [5], "signals": "no"}
        right = {**wrong, "signals": "reward", "max_tokens": 2}
        assert post(url, wrong)[0] == post(url, wrong, "other")[0] == 401
        assert b"reward" not in post(url, wrong)[1]
        assert post(url, wrong, "secret")[0] == 400
        status, content = post(url, right, "secret")
        assert status == 200
        assert len(json.loads(content)["choices"][0]["signals"]["reward"]["tokens"]) == 2
