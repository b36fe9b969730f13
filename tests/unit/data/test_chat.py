"""Dialogues have the token ids that transformers gives them, whatever the template writes."""

import ast
from pathlib import Path
from typing import Any

import pytest

import otter_cli
from otter_cli.core.errors import OtterError
from otter_cli.data.chat_template import ChatTable, close_turn, render_chat, turn_closing
from otter_cli.data.datasets import BlockDataset, LabelledDataset, PairDataset, StateDataset
from otter_cli.data.encoding import Encoder
from otter_cli.data.pairs import read_pairs
from otter_cli.data.texts import read_labelled, read_texts
from tests.support.chat_tokenizers import TEMPLATES, Listed, chat_tokenizer, said

HELLO, GO = said("hi there", "hello, you"), said("hi there", "go away")


@pytest.fixture(params=[True, False], ids=["adds BOS", "adds none"])
def adds_bos(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.fixture(params=TEMPLATES)
def tokenizer(request: pytest.FixtureRequest, adds_bos: bool, tiny_tokenizer: Any) -> Any:
    return chat_tokenizer(tiny_tokenizer, TEMPLATES[request.param], adds_bos=adds_bos)


@pytest.fixture
def chatml(tiny_tokenizer: Any) -> Any:
    """A template as SmolLM2's: each turn ends in EOS and a newline."""
    return chat_tokenizer(tiny_tokenizer, TEMPLATES["BOS at every turn"], adds_bos=False)


def ids_of(tokenizer: Any, messages: Any, **how: Any) -> list[int]:
    """What transformers gives, and no code of ours."""
    found: list[int] = tokenizer.apply_chat_template(
        messages, tokenize=True, return_dict=False, **how
    )
    return found


ROWS = {
    "whole dialogues": ({"chosen": HELLO, "rejected": GO}, None),
    "a text as the prompt": (
        {"prompt": "hi there", "chosen": "hello, you", "rejected": "go away"}, "prompt",
    ),
    "messages as the prompt": (
        {"prompt": HELLO[:1], "chosen": HELLO[1:], "rejected": GO[1:]}, "prompt",
    ),
    "the prompt in the answers too": (
        {"prompt": "hi there", "chosen": HELLO, "rejected": GO}, "prompt",
    ),
}  # fmt: skip


@pytest.mark.parametrize("eos", [True, False])
@pytest.mark.parametrize("form", ROWS)
def test_the_ids_of_pairs_are_transformers_own(tokenizer: Any, form: str, eos: bool) -> None:
    row, prompt = ROWS[form]
    table = ChatTable(Listed(row, row), tokenizer, ("chosen", "rejected"), prompt)
    data = PairDataset(
        read_pairs(table, prompt=prompt), Encoder(tokenizer, 99, eos=eos), share=True
    )
    assert data.chosen == [ids_of(tokenizer, HELLO)] * 2
    assert data.rejected == [ids_of(tokenizer, GO)] * 2
    batch = data.batch([0])
    for ids, given in zip(batch.input_ids.tolist(), [HELLO, GO], strict=True):
        expected = ids_of(tokenizer, given)
        assert ids[: len(expected)] == expected


@pytest.mark.parametrize("form", ROWS)
def test_a_pair_knows_its_prompt_as_generation_writes_it(tokenizer: Any, form: str) -> None:
    row, prompt = ROWS[form]
    pair = read_pairs(
        ChatTable(Listed(row, row), tokenizer, ("chosen", "rejected"), prompt), prompt=prompt
    )[0]
    assert pair.prompt == tokenizer.apply_chat_template(
        HELLO[:1], tokenize=False, add_generation_prompt=True
    )
    assert pair.identity == (pair.prompt,)


def test_the_ids_of_labelled_and_plain_texts_are_transformers_own(tokenizer: Any) -> None:
    rows = [{"text": HELLO, "toxicity": 0}, {"text": GO, "toxicity": 1}]
    table = ChatTable(Listed(*rows), tokenizer, ("text",))
    expected = [ids_of(tokenizer, HELLO), ids_of(tokenizer, GO)]
    labelled = read_labelled(table, text="text", labels=["toxicity"])
    assert LabelledDataset(labelled, Encoder(tokenizer, 99)).ids == expected
    joined = expected[0] + expected[1]
    assert BlockDataset(read_texts(table), tokenizer, len(joined)).ids.tolist() == [joined]
    states = StateDataset(read_texts(table), Encoder(tokenizer, 99, eos=False, keep="start"), 99, 0)
    for prefix in states.prefixes():
        assert any(prefix == ids[: len(prefix)] for ids in expected)


def test_a_dialogue_is_read_at_the_token_that_ends_its_last_turn(tokenizer: Any) -> None:
    """A model that generates stops there, and never reads what a template writes after it."""
    row = {"chosen": HELLO, "rejected": GO}
    pairs = read_pairs(ChatTable(Listed(row, row), tokenizer, ("chosen", "rejected")))
    ids, end = ids_of(tokenizer, HELLO), tokenizer.eos_token_id
    last_of = {True: len(ids) - 1, False: len(ids) - 1}
    if end in ids:
        last_of[True] = max(i for i, token in enumerate(ids) if token == end)
        last_of[False] = last_of[True] - 1
    for eos, last in last_of.items():
        batch = PairDataset(pairs, Encoder(tokenizer, 99, eos=eos)).batch([0])
        assert int(batch.last[0]) == last
        assert batch.attention_mask[0].tolist() == [
            int(i <= last) for i in range(batch.input_ids.shape[1])
        ]
    assert turn_closing(tokenizer) == ids[last_of[False] + 1 if end in ids else -1 :][:1]


def test_a_generated_answer_is_closed_as_a_trained_one_is(tokenizer: Any) -> None:
    """Prompt and answer, read at the same token, whether the model has written its end or not."""
    data = Encoder(tokenizer, 99)([render_chat(tokenizer, HELLO)])
    trained = data.ids[0][: data.lengths[0]]
    prompt = ids_of(tokenizer, HELLO[:1], add_generation_prompt=True)
    answer = tokenizer(HELLO[1]["content"], add_special_tokens=False)["input_ids"]
    closing, eos = turn_closing(tokenizer), tokenizer.eos_token_id
    assert close_turn([*prompt, *answer], closing, eos) == trained
    assert close_turn([*prompt, *answer, eos], closing, eos) == trained
    assert close_turn(trained, closing, eos) == trained


def test_a_dialogue_is_cut_and_counted_and_still_read_at_its_end(chatml: Any) -> None:
    ids = ids_of(chatml, HELLO)
    assert ids[-2:] == [chatml.eos_token_id, chatml("\n")["input_ids"][0]]
    texts = [render_chat(chatml, HELLO), render_chat(chatml, said("a", "b"))]
    kept = Encoder(chatml, len(ids) - 4)(texts)
    assert kept.ids[0] == [ids[0], *ids[5:]] and kept.lengths[0] == len(ids) - 5
    assert (kept.truncation.cut, kept.truncation.texts) == (1, 2)
    start = Encoder(chatml, len(ids) - 4, keep="start")(texts)
    assert start.ids[0] == ids[:-4] and start.lengths[0] == len(ids) - 4


def test_pairs_that_a_cut_makes_alike_where_they_are_read_are_left_out(chatml: Any) -> None:
    """After a cut two texts can be alike to the end."""
    row = {"chosen": said("a", "bad cat"), "rejected": said("a", "sad cat")}
    other = {"chosen": said("a", "cat"), "rejected": said("a", "cow")}
    pairs = read_pairs(ChatTable(Listed(row, other), chatml, ("chosen", "rejected")))
    data = PairDataset(pairs, Encoder(chatml, 6), share=True)
    assert data.identical == 1 and len(data.lengths) == 1
    assert data.chosen[0] != data.rejected[0]
    assert data.shared[0] < data.batch([0]).last.min()


def test_since_counts_the_characters_of_the_last_message(chatml: Any) -> None:
    rows = [{"text": HELLO, "toxicity": 1, "since": HELLO[1]["content"].index("you")}] * 2
    labelled = read_labelled(
        ChatTable(Listed(*rows), chatml, ("text",)), text="text", labels=["toxicity"], since="since"
    )
    whole = ids_of(chatml, HELLO)
    place = len(whole) - 2 - len("you")
    assert chatml.decode(whole[place:-2]) == "you"
    assert LabelledDataset(labelled, Encoder(chatml, 99)).label_start.tolist() == [place] * 2
    assert (
        LabelledDataset(labelled, Encoder(chatml, len(whole) - 3)).label_start.tolist()
        == [place - 3] * 2
    )
    over = [{**rows[0], "since": 99}]
    with pytest.raises(OtterError, match="table, row 1: 'since' is 99, outside 0 to 9"):
        read_labelled(
            ChatTable(Listed(*over), chatml, ("text",)),
            text="text",
            labels=["toxicity"],
            since="since",
        )


def test_messages_reach_the_template_as_they_are(tiny_tokenizer: Any) -> None:
    """Tool calls without content, lists of parts, and keys of a data set's own."""
    template = (
        "{% for m in messages %}{{ m.role }}({{ m.name }})({{ m.tool_call_id }}):"
        "{% if m.tool_calls %}{{ m.tool_calls[0].function.name }}{% endif %}"
        "{% if m.content is string %}{{ m.content }}"
        "{% else %}{% for part in m.content %}{{ part.text }}{% endfor %}{% endif %};{% endfor %}"
    )
    tokenizer = chat_tokenizer(tiny_tokenizer, template)
    call = {"type": "function", "function": {"name": "look_up", "arguments": {"what": "x"}}}
    messages = [
        {"role": "user", "name": "ann", "content": [{"type": "text", "text": "what is x?"}]},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "42"},
        {"role": "assistant", "content": [{"type": "text", "text": "it is "}, {"text": "42"}]},
    ]
    texts = read_texts(ChatTable(Listed(*[{"text": messages}] * 2), tokenizer, ("text",)))
    assert "(ann)" in texts[0] and "look_up" in texts[0] and "(c1):42" in texts[0]
    assert texts[0].endswith(":it is 42;")
    assert Encoder(tokenizer, 999)(texts).ids == [ids_of(tokenizer, messages)] * 2


@pytest.mark.parametrize(
    ("value", "what"),
    [
        ("plain", "'text' holds no messages"),
        ([], "'text' holds no messages"),
        (["hi"], "'text', message 1: 'hi' is no object with 'role' and 'content'"),
        ([*HELLO, {"content": "x"}], "'text', message 3: no 'role'"),
        ([{"role": 3, "content": "x"}], "'text', message 1: 'role' is 3, not a name"),
        ([{"role": "user"}], "'text', message 1: no 'content', and no tool calls"),
        ([{"role": "user", "content": None, "tool_calls": []}], "message 1: no 'content'"),
        ([{"role": "user", "content": 3}], "'content' is 3, neither text nor a list of parts"),
        ([{"role": "user", "content": [3]}], "'content' has a part 3, neither text nor an object"),
        ([{"role": "user", "content": [{"type": "text"}]}], "part of type 'text' without a 'text'"),
    ],
)
def test_what_is_no_message_is_refused_by_row_column_and_key(
    chatml: Any, value: Any, what: str
) -> None:
    with pytest.raises(OtterError) as caught:
        read_texts(ChatTable(Listed({"text": HELLO}, {"text": value}), chatml, ("text",)))
    assert caught.value.what.startswith("table, row 2: ") and what in caught.value.what
    assert '{"role": "user", "content": "Hello"}' in caught.value.hint


def test_a_column_that_is_not_there_is_named(chatml: Any) -> None:
    with pytest.raises(OtterError, match="table, row 1: no column 'text'"):
        read_texts(ChatTable(Listed({"texts": HELLO}), chatml, ("text",)))


@pytest.mark.parametrize(
    "template",
    [
        "{{ raise_exception('roles must alternate') }}",
        "{% for m in messages %}{{ m.content + 1 }}{% endfor %}",
        "{{ messages[9].content.strip() }}",
        "{{ 1 / 0 }}",
    ],
    ids=["raises", "a type error", "undefined", "another error"],
)
def test_a_template_that_fails_names_the_row(tiny_tokenizer: Any, template: str) -> None:
    tokenizer = chat_tokenizer(tiny_tokenizer, template)
    with pytest.raises(
        OtterError, match="table, row 1: the chat template refuses these messages: "
    ) as caught:
        read_texts(ChatTable(Listed({"text": HELLO}), tokenizer, ("text",)))
    assert "roles" in caught.value.hint


@pytest.mark.parametrize(
    "template",
    [
        "{% for m in messages %}{{ m.content }}",
        "{{ m.con",
        "{{ messages | no_such_filter }}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    ],
    ids=["left open", "cut off", "unknown filter", "endless"],
)
def test_a_template_that_is_damaged_is_not_blamed_on_the_messages(
    tiny_tokenizer: Any, template: str
) -> None:
    tokenizer = chat_tokenizer(tiny_tokenizer, template)
    with pytest.raises(OtterError, match="the chat template is not a valid program: ") as caught:
        read_texts(ChatTable(Listed({"text": HELLO}), tokenizer, ("text",)))
    assert "tokenizer_config.json" in caught.value.hint


def test_a_text_that_the_tokenizer_cannot_read_names_the_row(chatml: Any) -> None:
    broken = said("a", "\ud800")
    with pytest.raises(
        OtterError, match="table, row 1: the chat template refuses these messages: "
    ):
        read_texts(ChatTable(Listed({"text": broken}), chatml, ("text",)))


def test_without_a_template_it_is_told(tiny_tokenizer: Any) -> None:
    with pytest.raises(OtterError, match="table: .*the tokenizer has no chat template") as caught:
        read_texts(ChatTable(Listed({"text": HELLO}), tiny_tokenizer, ("text",)))
    assert "leave chat out" in caught.value.hint


def test_a_template_that_writes_the_prompt_otherwise_is_refused(tiny_tokenizer: Any) -> None:
    tokenizer = chat_tokenizer(tiny_tokenizer, "{{ messages | length }}!")
    row = {"prompt": "hi", "chosen": "a", "rejected": "b"}
    with pytest.raises(OtterError, match="writes 'prompt' differently before 'chosen'"):
        read_pairs(
            ChatTable(Listed(row), tokenizer, ("chosen", "rejected"), "prompt"), prompt="prompt"
        )


def test_one_place_applies_a_chat_template() -> None:
    package = Path(otter_cli.__file__).parent
    calls = {
        path.relative_to(package).as_posix()
        for path in package.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_bytes()))
        if isinstance(node, ast.Attribute) and node.attr == "apply_chat_template"
    }
    assert calls == {"data/chat_template.py"}
