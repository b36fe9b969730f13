"""`vllm serve` with ten clients at once: each has its own signals and its own strength."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from otter_cli.serving.vllm.client import SignalReader
from tests.vllm.serving import serve
from tests.vllm.support import expected

CLIENTS = 10
# The base has none of its own.
TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant:"


@pytest.fixture(scope="module")
def server(served: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("server")
    (folder / "template").write_text(TEMPLATE)
    more = ["--chat-template", str(folder / "template")]
    with serve(served["base"], folder / "log", *more) as address:
        yield f"{address}/v1"


@pytest.fixture(scope="module")
def client(server: str) -> Any:
    from openai import OpenAI

    return OpenAI(base_url=server, api_key="none", timeout=600, max_retries=0)


@pytest.fixture
def reader(served: dict[str, Path]) -> SignalReader:
    return SignalReader.from_folder(served["base"])


def complete(client: Any, prompt: list[int], **keywords: Any) -> Any:
    return client.completions.create(
        model="graft", prompt=prompt, temperature=0, max_tokens=12, **keywords
    ).choices[0]


def test_ten_clients_get_their_own(
    client: Any, reader: SignalReader, grafts: dict[str, Path]
) -> None:
    """Even ones ask for signals, odd ones for guidance; alone they get the same."""
    prompts = [[10 + i, 200 + 3 * i, 77, 400 + i] for i in range(CLIENTS)]

    def ask(i: int) -> dict[str, Any]:
        if i % 2:
            return reader.completion(guide="value", strength=float(i - 5))
        return reader.completion(["reward", "tone"] if i % 4 else ["value"])

    with ThreadPoolExecutor(CLIENTS) as pool:
        together = list(pool.map(lambda i: complete(client, prompts[i], **ask(i)), range(CLIENTS)))
    for i, choice in enumerate(together):
        assert choice.text == complete(client, prompts[i], **ask(i)).text
        read = reader.read(choice)
        if i % 2:
            assert not read
            continue
        tokens = [int(t.removeprefix("token_id:")) for t in choice.logprobs.tokens]
        wanted = expected(grafts["base"], prompts[i], tokens)
        assert read.keys() == ({"reward", "tone"} if i % 4 else {"value"})
        for name, scores in read.items():
            assert len(scores) == len(tokens)
            flat = [x for s in scores for x in (s if isinstance(s, list) else [s])]
            assert flat == pytest.approx(wanted[name].flatten().tolist(), abs=1e-4)


def test_streamed_pieces_carry_their_signals(client: Any, reader: SignalReader) -> None:
    prompt, keywords = [10, 200, 77, 400], reader.completion(["reward"])
    whole = reader.read(complete(client, prompt, **keywords))["reward"]
    pieces = client.completions.create(
        model="graft", prompt=prompt, temperature=0, max_tokens=12, stream=True, **keywords
    )
    streamed = [s for piece in pieces for s in reader.read(piece.choices[0]).get("reward", [])]
    assert streamed == pytest.approx(whole, abs=1e-5)


def test_log_probabilities_come_to_those_who_ask(client: Any, reader: SignalReader) -> None:
    def ask(**keywords: Any) -> tuple[list[float], Any]:
        choice = complete(client, [10, 200, 77, 400], **keywords)
        return choice.logprobs.token_logprobs, reader.read(choice).get("reward")

    plain, _ = ask(logprobs=0)
    asked, scores = ask(**reader.completion(["reward"], logprobs=0))
    silent, same = ask(**reader.completion(["reward"]))
    assert asked == pytest.approx(plain, abs=1e-5) and same == pytest.approx(scores, abs=1e-5)
    assert set(silent) == {-9999.0} and min(plain) > -100


def test_a_dialogue_carries_signals_and_is_stock_without(
    client: Any, reader: SignalReader, grafts: dict[str, Path], base: Path
) -> None:
    messages = [{"role": "user", "content": "What is a good name for a cat?"}]

    def chat(**keywords: Any) -> Any:
        return client.chat.completions.create(
            model="graft", messages=messages, temperature=0, max_tokens=12, **keywords
        )

    plain, asked = chat().choices[0], chat(**reader.chat(["reward", "tone"])).choices[0]
    assert plain.logprobs is None and plain.message.content == asked.message.content
    tokens = [int(one.token.removeprefix("token_id:")) for one in asked.logprobs.content]
    tokenizer = AutoTokenizer.from_pretrained(base)
    prompt = tokenizer.apply_chat_template(messages, chat_template=TEMPLATE, return_dict=True)
    wanted, read = expected(grafts["base"], prompt.input_ids, tokens), reader.read(asked)
    assert read["reward"] == pytest.approx(wanted["reward"].flatten().tolist(), abs=1e-4)
    tones = [x for scores in read["tone"] for x in scores]
    assert tones == pytest.approx(wanted["tone"].flatten().tolist(), abs=1e-4)
    pieces = chat(stream=True, **reader.chat(["reward"]))
    streamed = [s for piece in pieces for s in reader.read(piece.choices[0]).get("reward", [])]
    assert streamed == pytest.approx(read["reward"], abs=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"otter_signals": "rewart"}, "did you mean 'reward'"),
        ({"otter_guide": "reward", "otter_strength": 1.0}, "cannot guide in this engine"),
        ({"otter_signals": "reward"}, "logprobs=1"),
    ],
)
def test_what_has_no_meaning_is_status_400_with_a_message(
    client: Any, arguments: dict[str, Any], message: str
) -> None:
    from openai import BadRequestError

    with pytest.raises(BadRequestError) as error:
        complete(client, [10, 200], extra_body={"vllm_xargs": arguments})
    assert error.value.status_code == 400 and message in str(error.value)
