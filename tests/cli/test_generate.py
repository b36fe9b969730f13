"""`otter generate` as a user types it."""

import json
from pathlib import Path
from typing import Any

import pytest

from otter_cli.cli.generate_run import encode_prompt, read_requested_prompts
from otter_cli.core.errors import OtterError
from otter_cli.data.prompts import Prompt
from tests.conftest import Otter
from tests.support.chat_tokenizers import TEMPLATES, chat_tokenizer, said
from tests.support.grafts import random_graft


@pytest.fixture(scope="module")
def folder(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    out = tmp_path_factory.mktemp("generate") / "g"
    return str(random_graft(tiny_llama, out, hidden=8, heads=2, ffn=16))


def test_text_tokens_and_signals(otter_here: Otter, folder: str) -> None:
    shown = otter_here("generate", folder, "hello", "--max-new-tokens", "9", "--json")
    data = json.loads(shown.stdout)
    assert len(data["tokens"]) == 9 and data["text"]
    assert {name: len(values) for name, values in data["signals"].items()} == {
        "reward": 9,
        "toxicity": 9,
    }
    assert all(0 <= p <= 1 for p in data["signals"]["toxicity"])
    assert data["counters"]["base_passes"] == 10
    assert "untrained" in shown.stderr


def test_a_page_for_people(otter_here: Otter, folder: str) -> None:
    page = otter_here("generate", folder, "hello", "--max-new-tokens", "40", "--details").stdout
    assert "logprob" in page and "reward" in page and "passes of the base" in page
    assert max(map(len, page.splitlines())) <= 100


def test_a_pipe_gets_the_text_alone(otter_here: Otter, folder: str) -> None:
    options = ("generate", folder, "hello", "--max-new-tokens", "12")
    text = json.loads(otter_here(*options, "--json").stdout)["text"]
    assert otter_here(*options).stdout == text + "\n"
    assert otter_here(*options, "--no-details").stdout == text + "\n"
    assert otter_here(*options, "--quiet").stdout == text + "\n"


def test_a_terminal_gets_signals_and_table_unless_quiet(
    otter_here: Otter, folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ("generate", folder, "hello", "--max-new-tokens", "12", "--no-stream")
    text = json.loads(otter_here(*options, "--json").stdout)["text"]
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    assert "logprob" in otter_here(*options).stdout
    assert otter_here(*options, "--quiet").stdout == text + "\n"


def test_no_special_token_is_shown_in_a_text(otter_here: Otter, folder: str) -> None:
    """Every token of a text is declared special: the text is empty, the record keeps them all."""
    from otter_cli.cli.generate_view import plain_texts, text_record
    from otter_cli.decoding.results import Generation, GenerationCounters
    from otter_cli.model.load import load_tokenizer
    from otter_cli.reports.terminal import text_lines

    tokenizer = load_tokenizer(folder)
    end = tokenizer.eos_token_id
    word = tokenizer("a")["input_ids"][-1]
    row = Generation([word, end], [-1.0, -2.0], {}, "eos", counters=GenerationCounters())
    record = {**text_record("hello", [word], row, tokenizer, {}), "streamed": False}
    assert [token["special"] for token in record["tokens"]] == [False, True]
    assert tokenizer.eos_token not in plain_texts([record])
    assert tokenizer.eos_token not in text_lines(record)[0].plain


def test_guided_drafted_and_plain(otter_here: Otter, folder: str) -> None:
    def text(*options: str) -> str:
        run = otter_here("generate", folder, "hello", "--max-new-tokens", "16", "--json", *options)
        return json.loads(run.stdout)["text"]

    plain = text()
    assert text("--guide", "reward", "--strength", "0") == plain
    assert text("--draft", "future") == plain
    assert text("--draft", "prompt-lookup") == plain
    assert text("--guide", "reward", "--strength", "9") != plain


def test_many_prompts(otter_here: Otter, folder: str, tmp_path: Path) -> None:
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "one"}\n{"prompt": "two"}\n')
    run = otter_here("generate", folder, "--file", str(tmp_path / "prompts.jsonl"), "--json")
    assert [json.loads(line)["prompt"] for line in run.stdout.splitlines()] == ["one", "two"]


def test_prompts_from_stdin_in_batches_are_the_same_as_one_by_one(
    otter_here: Otter, folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import io

    def rows(*options: str) -> list[list[int]]:
        monkeypatch.setattr("sys.stdin", io.StringIO("one\n\ntwo words\nthree\n"))
        run = otter_here("generate", folder, "-", "--json", "--max-new-tokens", "6", *options)
        found = [json.loads(line) for line in run.stdout.splitlines()]
        assert [g["prompt"] for g in found] == ["one", "two words", "three"]
        return [[token["id"] for token in g["tokens"]] for g in found]

    assert rows("--batch", "1") == rows("--batch", "2") == rows()


def test_the_text_is_its_tokens(otter_here: Otter, shared: Path, tmp_path: Path) -> None:
    """A SentencePiece-like tokenizer decodes single tokens without the space before them."""
    graft = random_graft(shared / "models/stories260K", tmp_path / "g", hidden=8, heads=1, ffn=8)
    shown = otter_here("generate", graft, "Once upon", "--max-new-tokens", "24", "--json")
    data = json.loads(shown.stdout)
    assert "".join(token["text"] for token in data["tokens"]) == data["text"]
    assert data["text"].startswith(" a time, there was")
    page = otter_here("generate", graft, "Once upon", "--max-new-tokens", "24", "--details").stdout
    assert "Once upon a time, there was" in page


def test_seeds_decide_what_is_drawn(otter_here: Otter, folder: str) -> None:
    def drawn(seed: str) -> str:
        options = ("--temperature", "1.5", "--top-k", "50", "--top-p", "0.95", "--seed", seed)
        return otter_here("generate", folder, "hello", "--json", *options).stdout

    texts = [json.loads(drawn(seed))["text"] for seed in ("1", "1", "2")]
    assert texts[0] == texts[1] != texts[2]


def test_drafts_are_counted_by_position(otter_here: Otter, folder: str) -> None:
    page = otter_here(
        "generate", folder, "abababab", "--draft", "prompt-lookup", "--details"
    ).stdout
    assert "drafts kept, by position" in page


def test_several_labels_are_named(otter_here: Otter, tiny_llama: Path, tmp_path: Path) -> None:
    graft = random_graft(
        tiny_llama, tmp_path / "g", hidden=8, heads=2, ffn=16, signals=("tone=classes:kind,rude",)
    )
    arguments = ("generate", graft, "hello", "--guide", "tone", "--label", "rude")
    data = json.loads(otter_here(*arguments, "--strength", "-4", "--json").stdout)
    assert data["labels"] == {"tone": ["kind", "rude"]}
    assert all(len(scores) == 2 for scores in data["signals"]["tone"])
    # A weight for each label, by one option each.
    one = ("--guide", "tone/rude:-4")
    same = json.loads(otter_here(*arguments[:3], *one, "--json").stdout)
    assert same["tokens"] == data["tokens"]
    both = otter_here(*arguments[:3], *one, "--guide", "tone/kind:90", "--json").stdout
    assert json.loads(both)["tokens"] != data["tokens"]
    wrong = otter_here(*arguments[:3], "--guide", "tone/rood:1")
    assert wrong.returncode == 2 and "its labels: kind, rude" in wrong.stderr
    page = otter_here(*arguments, "--details").stdout
    assert "tone.kind" in page and "tone.rude" in page
    assert max(map(len, page.splitlines())) <= 100


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "give a prompt"),
        (("x", "--guide", "rewrd"), "'rewrd'"),
        (("x", "--signal", "nothing"), "'nothing'"),
        (("x", "--draft", "reward"), "no future signal"),
        (("x" * 120,), "window of 128"),
        (("x", "--file", "nowhere.txt"), "not both"),
        (("--file", "nowhere.txt"), "nowhere.txt"),
        (("x", "--temperature", "-1"), "temperature is -1"),
        (("x", "--guide", "reward", "--candidates", "98"), "98 candidates"),
        (("x", "--max-new-tokens", "0"), "max_new_tokens is 0"),
        (("x", "--batch", "0"), "--batch is 0"),
    ],
)
def test_refusals(otter_here: Otter, folder: str, arguments: tuple[str, ...], words: str) -> None:
    run = otter_here("generate", folder, *arguments)
    assert run.returncode == 2 and run.stdout == ""
    assert words in run.stderr and "hint:" in run.stderr and "Traceback" not in run.stderr


def test_guides_gates_trees_and_stops(otter_here: Otter, folder: str) -> None:
    def data(*options: str) -> dict[str, object]:
        run = otter_here("generate", folder, "hello", "--max-new-tokens", "16", "--json", *options)
        assert run.returncode == 0, run.stderr
        found: dict[str, object] = json.loads(run.stdout)
        return found

    plain = data()
    assert data("--guide", "reward:9", "--gate", "entropy>99")["tokens"] == plain["tokens"]
    assert data("--guide", "reward:9", "--guide", "toxicity:-3")["text"] != plain["text"]
    assert data("--draft", "future", "--tree", "3,2")["text"] == plain["text"]
    text = str(plain["text"])
    stopped = data("--stop", text[3:5])
    assert stopped["finish"] == "stop" and text.startswith(str(stopped["text"]))
    rejected = data("--reject", "toxicity>-1")
    assert rejected["finish"] == "rejected" and "toxicity>-1" in str(rejected["message"])
    later = data("--reject", "toxicity>-1", "--read-every", "4")
    assert later["tokens"] == rejected["tokens"] and later["message"] == rejected["message"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--tree", "3,2"), "--tree needs --draft"),
        (("--draft", "future", "--tree", "a"), "list of widths"),
        (("--guide", "reward:x"), "not a number"),
        (("--gate", "entropy"), "is no bound"),
        (("--chat",), "no chat template"),
        (("--typical",), "accepts drafts"),
        (("--signal", "nope"), "there is no signal 'nope'"),
        (("--signal", ""), "--signal is empty"),
        (("--signal", "future"), "predicts tokens"),
        (("--draft", "future", "--tree", "learnt:x"), "list of widths"),
        (("--draft", "future", "--tree", "learnt:4,3"), "list of widths"),
        (("--draft", "future", "--tree", "999,999"), "999,000 tokens is too large"),
        (("--draft", "reward", "--tree", "learnt:4"), "no future signal"),
    ],
)
def test_options_without_meaning(
    otter_here: Otter, folder: str, options: tuple[str, ...], words: str
) -> None:
    run = otter_here("generate", folder, "x", *options)
    assert run.returncode == 2 and words in run.stderr and "hint:" in run.stderr


def test_text_that_streams_is_the_text(otter_here: Otter, folder: str) -> None:
    options = ("generate", folder, "hello", "--max-new-tokens", "16")
    text = json.loads(otter_here(*options, "--json").stdout)["text"]
    assert otter_here(*options, "--stream").stdout == text + "\n"
    # With --json stdout is the data's alone.
    streamed = otter_here(*options, "--stream", "--json")
    assert text in streamed.stderr and json.loads(streamed.stdout)["text"] == text


def test_what_a_signal_rejects_is_never_told(otter_here: Otter, folder: str) -> None:
    options = ("generate", folder, "hello", "--draft", "prompt-lookup", "--reject", "toxicity>-1")
    run = otter_here(*options, "--stream")
    rejected = json.loads(otter_here(*options, "--json").stdout)
    assert len(rejected["tokens"]) == 1
    assert run.stdout == rejected["text"] + "\n"


def test_a_lossy_text_says_so(otter_here: Otter, folder: str) -> None:
    options = ("generate", folder, "hello", "--draft", "future", "--temperature", "1")
    typical = otter_here(*options, "--typical", "--json")
    assert json.loads(typical.stdout)["lossy"] is True
    assert json.loads(otter_here(*options, "--json").stdout)["lossy"] is False
    assert "typical acceptance is lossy" in otter_here(*options, "--typical", "--details").stdout


def test_a_learnt_tree_changes_no_text(otter_here: Otter, folder: str) -> None:
    options = ("generate", folder, "hello", "--max-new-tokens", "24", "--json")
    learnt = otter_here(*options, "--draft", "future", "--tree", "learnt:5")
    assert "draft tree learnt, texts: 1, tree: 0" in learnt.stderr
    assert json.loads(learnt.stdout)["text"] == json.loads(otter_here(*options).stdout)["text"]


def test_a_smaller_model_drafts(otter_here: Otter, folder: str, tiny_llama: Path) -> None:
    options = ("generate", folder, "hello", "--max-new-tokens", "16", "--json")
    plain = json.loads(otter_here(*options).stdout)
    drafted = json.loads(otter_here(*options, "--draft", tiny_llama).stdout)
    assert drafted["text"] == plain["text"]
    # Its own base as a draft model is always right.
    assert drafted["counters"]["accepted"] == drafted["counters"]["drafted"]
    assert drafted["counters"]["base_passes"] < plain["counters"]["base_passes"]
    assert otter_here(*options, "--draft", tiny_llama, "--tree", "2").returncode == 2


def test_near_ties_show_both_paths(
    otter_here: Otter, folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every choice counts as a near-tie: each is reported with what a step of one token says."""
    from torch import full, inf

    from otter_cli.decoding.speculative import decoder

    monkeypatch.setattr(decoder, "near_tie_gap", lambda logits: full(logits.shape[:-1], inf))
    options = ("generate", folder, "hello", "--max-new-tokens", "8", "--draft", "future")
    data = json.loads(otter_here(*options, "--json").stdout)
    # The first token is no draft's: a step of one gives it.
    assert [tie["position"] for tie in data["near_ties"]] == list(range(1, 8))
    for tie in data["near_ties"]:
        assert tie["many_tokens"] == tie["one_token"] != tie["second"] and tie["gap"] > 0
        assert tie["many_tokens"]["id"] == data["tokens"][tie["position"]]["id"]
    assert data["counters"]["rescoring_passes"] > 0
    page = otter_here(*options, "--details").stdout
    assert "near-tie at token 2" in page and max(map(len, page.splitlines())) <= 100


@pytest.mark.parametrize("adds_bos", [True, False])
@pytest.mark.parametrize("template", TEMPLATES)
def test_the_ids_of_chat_prompts_are_transformers_own(
    tiny_tokenizer: Any, template: str, adds_bos: bool, tmp_path: Path
) -> None:
    tokenizer = chat_tokenizer(tiny_tokenizer, TEMPLATES[template], adds_bos=adds_bos)
    dialogue = said("hi", "yes?", "hello")
    rows = [
        {"prompt": "hello"},
        {"prompt": dialogue},
        {"messages": dialogue},
        {"chosen": [*dialogue, *said("", "a")[1:]], "rejected": [*dialogue, *said("", "b")[1:]]},
    ]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    messages = [said("hello"), dialogue, dialogue, dialogue]
    for prompt, given in zip(read_requested_prompts(None, file), messages, strict=True):
        assert encode_prompt(tokenizer, prompt, chat=True) == tokenizer.apply_chat_template(
            given, tokenize=True, return_dict=False, add_generation_prompt=True
        )


def test_prompts_that_need_a_template_are_told_by_file_and_line(
    tiny_tokenizer: Any, tmp_path: Path
) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps({"messages": said("hello")}) + "\n")
    (prompt,) = read_requested_prompts(None, file)
    with pytest.raises(OtterError, match="rows.jsonl, line 1: the prompt is a list of messages"):
        encode_prompt(tiny_tokenizer, prompt, False, file)
    with pytest.raises(OtterError, match="line 1: the tokenizer has no chat template"):
        encode_prompt(tiny_tokenizer, prompt, True, file)
    plain = Prompt("hello", 1)
    with pytest.raises(OtterError, match="^the prompt: the tokenizer has no chat template"):
        encode_prompt(tiny_tokenizer, plain, chat=True)
    assert encode_prompt(tiny_tokenizer, plain, chat=False) == tiny_tokenizer("hello")["input_ids"]
    file.write_text(json.dumps({"messages": said("hello", "yes")}) + "\n")
    with pytest.raises(OtterError, match="line 1: 'messages' ends with the assistant's own"):
        read_requested_prompts(None, file)
    file.write_text(json.dumps({"chosen": said("a", "b"), "rejected": said("c", "d")}) + "\n")
    with pytest.raises(OtterError, match="line 1: 'chosen' and 'rejected' share no message"):
        read_requested_prompts(None, file)


def test_signals_of_tokens_to_come_are_not_shown(
    otter_here: Otter, tiny_llama: Path, tmp_path: Path
) -> None:
    """By default generate reads what scores the text: action values are for guides."""
    signals = ("reward", "action-reward", "future:2,plain")
    graft = random_graft(tiny_llama, tmp_path / "g", hidden=8, heads=2, ffn=16, signals=signals)
    shown = otter_here("generate", graft, "hello", "--max-new-tokens", "3", "--json")
    assert shown.returncode == 0 and list(json.loads(shown.stdout)["signals"]) == ["reward"]
