"""The official `openai` client against a live server: texts, log-probabilities, signals, guides."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch
from transformers import AutoModelForCausalLM

from otter_cli.data.chat_template import render_chat
from tests.support.live_server import Live

MESSAGES = [{"role": "user", "content": "hello"}]
DOCUMENT = Path(__file__).parents[4] / "docs/signals.schema.json"


def chat(client: Any, **more: Any) -> Any:
    settings = {"model": "toy", "messages": MESSAGES, "temperature": 0, "max_tokens": 12}
    return client.chat.completions.create(**{**settings, **more})


def complete(client: Any, **more: Any) -> Any:
    settings = {"model": "toy", "prompt": "hello", "temperature": 0, "max_tokens": 12}
    return client.completions.create(**{**settings, **more})


def prompt_ids(live: Live, messages: Any = MESSAGES) -> list[int]:
    return list(render_chat(live.otter.tokenizer, messages, generate=True).ids)


def expected_signals(live: Live, prompt: list[int], tokens: list[int]) -> dict[str, Any]:
    """The signals at the generated tokens, by one forward pass over the whole text."""
    ids = torch.tensor([[*prompt, *tokens]])
    with torch.no_grad():
        out = live.otter(ids)
    start, count = len(prompt), len(tokens)
    values = out.signals["value"][0, start - 1 : -1]
    return {
        "reward": out.signals["reward"][0, start:].tolist(),
        "tone": out.signals["tone"][0, start:].sigmoid().tolist(),
        "value": [values[place, tokens[place]].item() for place in range(count)],
    }


def assert_close(got: dict[str, Any], wanted: dict[str, Any]) -> None:
    document = json.loads(DOCUMENT.read_text())
    schema = {"$ref": "#/$defs/ChoiceExtension", "$defs": document["$defs"]}
    jsonschema.validate({"signals": got}, schema)
    for name, series in got.items():
        torch.testing.assert_close(
            torch.tensor(series["tokens"]), torch.tensor(wanted[name]), rtol=0, atol=1e-4
        )
        assert series["last"] == series["tokens"][-1]


def token_ids(live: Live, texts: list[str]) -> list[int]:
    return [live.otter.tokenizer.convert_tokens_to_ids(t.replace(" ", "~")) for t in texts]


def test_a_request_that_asks_for_nothing_gets_the_bases_own_text_and_logits(
    live: Live, client: Any, chat_graft: Path
) -> None:
    answer = chat(client, max_tokens=20, logprobs=True, top_logprobs=3)
    base = AutoModelForCausalLM.from_pretrained(chat_graft)
    prompt = prompt_ids(live)
    out = base.generate(
        torch.tensor([prompt]), max_new_tokens=20, do_sample=False, output_logits=True,
        return_dict_in_generate=True,
    )  # fmt: skip
    tokens = out.sequences[0, len(prompt) :]
    logprobs = torch.cat(out.logits).float().log_softmax(-1)
    choice = answer.choices[0]
    assert choice.message.content == live.otter.tokenizer.decode(tokens, skip_special_tokens=True)
    assert answer.usage.completion_tokens == len(tokens)
    assert answer.usage.prompt_tokens == len(prompt)
    got = torch.tensor([entry.logprob for entry in choice.logprobs.content])
    assert torch.equal(got, logprobs.gather(-1, tokens[:, None])[:, 0])
    for entry, row in zip(choice.logprobs.content, logprobs, strict=True):
        best = row.topk(3)
        assert torch.equal(torch.tensor([t.logprob for t in entry.top_logprobs]), best.values)
        assert token_ids(live, [t.token for t in entry.top_logprobs]) == best.indices.tolist()
    assert not choice.model_extra


@pytest.mark.parametrize("streamed", [False, True])
def test_signals_of_a_chat_are_those_of_a_forward_pass(
    live: Live, client: Any, streamed: bool
) -> None:
    names = ["reward", "tone", "value"]
    answer = chat(client, logprobs=True, stream=streamed, extra_body={"signals": names})
    if streamed:
        signals: dict[str, Any] = {}
        texts, finish = [], None
        for chunk in answer:
            choice = chunk.choices[0]
            texts += [t.token for t in choice.logprobs.content] if choice.logprobs else []
            for name, series in (choice.model_extra or {}).get("signals", {}).items():
                grown = signals.setdefault(name, {**series, "tokens": []})
                grown["tokens"] += series["tokens"]
                grown["last"] = series["last"]
            finish = choice.finish_reason or finish
    else:
        choice = answer.choices[0]
        signals, finish = choice.model_extra["signals"], choice.finish_reason
        texts = [t.token for t in choice.logprobs.content]
    assert list(signals) == names and finish == "length" and len(texts) == 12
    assert_close(signals, expected_signals(live, prompt_ids(live), token_ids(live, texts)))
    assert signals["tone"]["labels"] == ["rude", "kind"] and "labels" not in signals["reward"]


def test_completions_have_prompts_of_text_and_of_token_ids(live: Live, client: Any) -> None:
    ids = live.otter.tokenizer("hello")["input_ids"]
    alone = complete(client, logprobs=2, extra_body={"signals": ["reward"]})
    choice = alone.choices[0]
    tokens = token_ids(live, choice.logprobs.tokens)
    assert_close(choice.model_extra["signals"], expected_signals(live, ids, tokens))
    shown = ["" if text == "<pad>" else text for text in choice.logprobs.tokens]
    assert choice.text == "".join(shown)
    offsets = [sum(map(len, shown[:n])) for n in range(len(tokens))]
    assert choice.logprobs.text_offset == offsets
    assert all(len(top) == 2 for top in choice.logprobs.top_logprobs)
    assert complete(client, prompt=ids).choices[0].text == choice.text
    several = complete(client, prompt=["hello", "goodbye"], n=2)
    assert [each.index for each in several.choices] == [0, 1, 2, 3]
    assert several.choices[0].text == several.choices[1].text == choice.text
    assert several.choices[2].text == complete(client, prompt="goodbye").choices[0].text


def test_choices_are_drawn_by_seed(client: Any) -> None:
    drawn = {"temperature": 1.5, "n": 3, "seed": 7}
    texts = [choice.message.content for choice in chat(client, **drawn).choices]
    assert len(set(texts)) == 3
    assert [choice.message.content for choice in chat(client, **drawn).choices] == texts
    others = [c.message.content for c in chat(client, temperature=1.5, n=3).choices]
    assert others != texts


@pytest.mark.parametrize("streamed", [False, True])
def test_a_stop_string_is_cut_off(client: Any, streamed: bool) -> None:
    whole = complete(client).choices[0].text
    stop = whole[4:7]
    wanted = whole[: whole.index(stop)]
    answer = complete(client, stop=[stop, "never there"], stream=streamed)
    if streamed:
        choices = [chunk.choices[0] for chunk in answer]
        text, last = "".join(choice.text for choice in choices), choices[-1]
    else:
        last = answer.choices[0]
        text = last.text
    assert text == wanted and last.finish_reason == "stop"
    assert last.model_extra == {"stop_reason": stop}


def test_a_bound_stops_an_answer_at_its_token(live: Live, client: Any) -> None:
    ask = {"signals": ["reward"]}
    values = chat(client, max_tokens=30, extra_body=ask).choices[0].model_extra["signals"]["reward"]
    highest = max(values["tokens"][3:])
    place = next(n for n, value in enumerate(values["tokens"]) if value >= highest)
    bound = f"reward >= {highest - 1e-5}"
    choice = chat(client, max_tokens=30, extra_body={**ask, "stop_when": bound}).choices[0]
    assert choice.finish_reason == "content_filter"
    assert choice.model_extra["stop_reason"] == bound.replace(" ", "")
    assert len(choice.model_extra["signals"]["reward"]["tokens"]) <= place + 1
    assert choice.model_extra["signals"]["reward"]["last"] >= highest - 1e-5


def test_ten_at_once_have_guidance_of_their_own(live: Live, client: Any) -> None:
    """Even ones are guided, odd ones are not; alone they get the same."""

    def ask(number: int) -> Any:
        guide = {"reward": 3.0 * (number - 5)} if number % 4 else {"value": float(number)}
        body = {"guide": guide} if number % 2 == 0 else {"signals": ["tone"]}
        messages = [{"role": "user", "content": "hello" * (1 + number % 3)}]
        return chat(client, messages=messages, extra_body=body).choices[0]

    with ThreadPoolExecutor(10) as pool:
        together = list(pool.map(ask, range(10)))
    for number, choice in enumerate(together):
        assert choice.message.content == ask(number).message.content
    guided = [chat(client, extra_body={"guide": {"reward": w}}).choices[0].message.content
              for w in (-9.0, 0.0, 9.0)]  # fmt: skip
    assert guided[1] == chat(client).choices[0].message.content and len(set(guided)) == 3
    own = live.otter.generate(MESSAGES, guide={"reward": 9.0}, max_new_tokens=12)
    assert guided[2] == own.text


def test_a_stream_ends_with_usage_where_it_is_asked_for(client: Any) -> None:
    chunks = list(chat(client, stream=True, stream_options={"include_usage": True}))
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-1].usage.completion_tokens == 12 and not chunks[-1].choices
    text = "".join(c.choices[0].delta.content or "" for c in chunks[:-1])
    assert text == chat(client).choices[0].message.content


def test_texts_and_dialogues_are_scored(live: Live, client: Any) -> None:
    def score(**body: Any) -> Any:
        return client.post("/score", body=body, cast_to=object)

    answer = score(model="toy", input=["hello", "good bye"], signals=["reward", "tone"])
    for entry, text in zip(answer["data"], ("hello", "good bye"), strict=True):
        wanted = live.otter.score(text)
        assert entry["tokens"] == wanted.tokens
        for name, series in entry["signals"].items():
            torch.testing.assert_close(
                torch.tensor(series["tokens"]), torch.tensor(wanted.signals[name]),
                check_dtype=False,
            )  # fmt: skip
    dialogue = [*MESSAGES, {"role": "assistant", "content": "bye"}]
    [entry] = score(messages=dialogue)["data"]
    assert entry["signals"]["reward"]["last"] == pytest.approx(
        live.otter.score(dialogue).signals["reward"][-1], abs=1e-5
    )


def test_models_are_listed_with_their_signals(client: Any) -> None:
    [model] = client.models.list().data
    assert model.id == "toy" == client.models.retrieve("toy").id
    assert [signal["name"] for signal in model.signals] == ["reward", "tone", "value"]
    assert model.signals_schema == 1
