"""A chat template is a program from the base's folder: one that does not end is an error."""

import threading
import time
from copy import deepcopy
from typing import Any

import pytest

from otter_cli.core.errors import OtterError
from otter_cli.data import chat_template
from otter_cli.data.chat_template import render_chat, user_turn

MANY = "{% for i in range(99999) %}"
ENDLESS = {
    "loops in loops": MANY * 4 + "{% endfor %}" * 4,
    "loops that write": MANY * 2 + "xxxxxxxxxx" + "{% endfor %}" * 2,
    "a range beyond the sandbox's": "{% for i in range(10**9) %}{% endfor %}",
    "a large range": "{% for i in range(1000000000) %}{% endfor %}",
    "powers of powers": "{{ 10**10**10 }}",
    "a repetition": "{{ 'x' * 100000000000 }}",
    "doubling": "{% set n = namespace(x='xxxxxxxx') %}"
    + MANY
    + "{% set n.x = n.x ~ n.x %}{% endfor %}",
    "a macro that calls itself": "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "a long text": "{{ 'x' * 2000000 }}",
    "a truncated loop": "{% for m in messages %}{{ m['content'] }}{% for i in range(",
    "an undefined name": "{{ x.y.z }}",
}


def _tokenizer(tiny_tokenizer: Any, template: Any) -> Any:
    tokenizer = deepcopy(tiny_tokenizer)
    tokenizer.chat_template = template
    return tokenizer


@pytest.fixture
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_template, "_SECONDS", 0.5)
    monkeypatch.setattr(chat_template, "_MEMORY_BYTES", 1 << 28)


@pytest.mark.usefixtures("_short")
@pytest.mark.parametrize("template", ENDLESS.values(), ids=ENDLESS)
def test_it_ends_in_an_error(tiny_tokenizer: Any, template: str) -> None:
    started = time.monotonic()
    with pytest.raises(OtterError, match="the chat template") as caught:
        render_chat(_tokenizer(tiny_tokenizer, template), user_turn("hi"))
    assert caught.value.hint
    assert time.monotonic() - started < 10


@pytest.mark.usefixtures("_short")
def test_it_ends_in_a_thread_too(tiny_tokenizer: Any) -> None:
    found: list[str] = []

    def run() -> None:
        with pytest.raises(OtterError) as caught:
            render_chat(_tokenizer(tiny_tokenizer, ENDLESS["loops in loops"]), user_turn("hi"))
        found.append(caught.value.what)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(timeout=20)
    assert found == ["the chat template takes more than 0.5 seconds"]


@pytest.mark.parametrize("template", [7, ["x"], "x" * 1_000_001])
def test_what_is_no_template_is_refused(tiny_tokenizer: Any, template: Any) -> None:
    with pytest.raises(OtterError, match="the chat template is"):
        render_chat(_tokenizer(tiny_tokenizer, template), user_turn("hi"))


def test_a_long_dialogue_is_not_refused(tiny_tokenizer: Any) -> None:
    template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    text = "word " * 50_000
    assert len(render_chat(_tokenizer(tiny_tokenizer, template), user_turn(text))) == len(text)
