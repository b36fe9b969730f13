"""`otter chat`, driven through a pipe as a script would."""

import io
import json
from pathlib import Path
from typing import Any

import pytest

from otter_cli import load
from tests.conftest import Otter
from tests.support.grafts import chat_base, random_graft


@pytest.fixture(scope="module")
def folder(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = chat_base(tiny_llama, tmp_path_factory.mktemp("chat") / "base")
    return random_graft(base, base.parent / "graft", hidden=8, heads=2, ffn=16)


@pytest.fixture
def chat(otter_here: Otter, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    def run(lines: str, *options: str) -> Any:
        monkeypatch.setattr("sys.stdin", io.StringIO(lines))
        return otter_here("chat", folder, "--max-new-tokens", "6", *options)

    return run


def test_each_line_is_answered_with_the_turns_before_it(chat: Any, folder: Path) -> None:
    run = chat("hello\ngood day\n", "--json")
    turns = json.loads(run.stdout)["turns"]
    model = load(folder)
    messages: list[dict[str, str]] = []
    for turn, text in zip(turns, ("hello", "good day"), strict=True):
        messages.append({"role": "user", "content": text})
        expected = model.generate(messages, max_new_tokens=6)
        assert turn["user"] == text and turn["assistant"] == expected.text
        assert turn["signals"]["reward"] == pytest.approx(
            expected.signals["reward"].tolist(), abs=1e-4
        )
        messages.append({"role": "assistant", "content": expected.text})


def test_the_answer_is_on_stdout_and_talk_on_stderr(chat: Any, folder: Path) -> None:
    run = chat("hello\n")
    expected = load(folder).generate([{"role": "user", "content": "hello"}], max_new_tokens=6)
    assert expected.text in run.stdout.replace("\n", "") or expected.text in run.stdout
    assert "/help" in run.stderr and "/help" not in run.stdout
    assert "turns" not in run.stdout


def test_a_guide_is_switched_on_and_off(chat: Any) -> None:
    run = chat("hello\n/guide reward:50\n/new\nhello\n/plain\n/new\nhello\n", "--json")
    plain, guided, again = (turn["assistant"] for turn in json.loads(run.stdout)["turns"])
    assert plain == again != guided
    assert "guided by reward:50" in run.stderr and "no guide is active" in run.stderr


def test_bad_commands_are_told_and_the_chat_goes_on(chat: Any) -> None:
    run = chat("/nothing\n/guide rewrd:1\n/signal none\n/save\n/guide reward:x\nhello\n", "--json")
    assert run.stderr.count("error:") == 5
    assert len(json.loads(run.stdout)["turns"]) == 1


def test_a_conversation_is_saved(chat: Any, tmp_path: Path) -> None:
    chat(f"hello\n/save {tmp_path / 'chat.json'}\n/quit\nnever read\n")
    saved = json.loads((tmp_path / "chat.json").read_text())
    assert [message["role"] for message in saved["messages"]] == ["user", "assistant"]
    assert saved["turns"][0]["signals"]["reward"]


def test_a_system_message_comes_first(chat: Any, folder: Path) -> None:
    run = chat("hello\n", "--json", "--system", "be kind")
    messages = [{"role": "system", "content": "be kind"}, {"role": "user", "content": "hello"}]
    expected = load(folder).generate(messages, max_new_tokens=6).text
    assert json.loads(run.stdout)["turns"][0]["assistant"] == expected


def test_ctrl_c_keeps_what_was_written(chat: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from otter_cli.cli.chat_terminal import ChatTerminal

    shown: list[str] = []
    show = ChatTerminal.show_token

    def stop_at_third(self: ChatTerminal, text: str, *values: Any) -> None:
        shown.append(text)
        show(self, text, *values)
        if len(shown) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(ChatTerminal, "show_token", stop_at_third)
    run = chat("hello\ngood day\n", "--json")
    first, second = json.loads(run.stdout)["turns"]
    assert first["finish"] == "interrupted" and first["assistant"] == "".join(shown[:3])
    assert second["finish"] == "length"


def test_ctrl_c_before_the_first_token_drops_the_message(
    chat: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An empty answer would be a turn that the model never gave."""
    from otter_cli.cli import chat_session

    generate, calls = chat_session.generate, []

    def stopped_at_first(*arguments: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) == 1:
            raise KeyboardInterrupt
        return generate(*arguments, **options)

    monkeypatch.setattr(chat_session, "generate", stopped_at_first)
    run = chat("hello\ngood day\n", "--json")
    (turn,) = json.loads(run.stdout)["turns"]
    alone = load(folder).generate([{"role": "user", "content": "good day"}], max_new_tokens=6)
    assert turn["assistant"] == alone.text and "the message is dropped" in run.stderr


def test_a_stopped_answer_has_all_scores_of_its_signal(
    otter_here: Otter, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from otter_cli.cli.chat_terminal import ChatTerminal

    signals = ("classes:bad,good",)
    graft = random_graft(
        folder.parent / "base", tmp_path / "g", hidden=8, heads=2, ffn=16, signals=signals
    )
    lines = "hello\n/new\nhello\n"

    def scores() -> Any:
        monkeypatch.setattr("sys.stdin", io.StringIO(lines))
        run = otter_here("chat", graft, "--max-new-tokens", "6", "--json")
        return [turn["signals"]["classes"] for turn in json.loads(run.stdout)["turns"]]

    whole = scores()[0]
    show, shown = ChatTerminal.show_token, []

    def stop_at_third(self: ChatTerminal, *values: Any) -> None:
        show(self, *values)
        shown.append(values)
        if len(shown) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(ChatTerminal, "show_token", stop_at_third)
    stopped, again = scores()
    assert again == whole and 3 <= len(stopped) < len(whole) and len(stopped[0]) == 2
    assert stopped == whole[: len(stopped)]


def test_a_conversation_ends_where_the_window_does(chat: Any) -> None:
    run = chat(f"{'a' * 100}\n{'b' * 20}\n/new\nhello\n", "--json", "--max-new-tokens", "99")
    first, second = json.loads(run.stdout)["turns"]
    assert 0 < len(first["tokens"]) < 30 and second["user"] == "hello"
    assert "fills the base's window" in run.stderr and "/new starts a new" in run.stderr


def test_a_guide_without_meaning_is_refused_when_it_is_set(chat: Any) -> None:
    run = chat("/guide reward:nan\nhello\n", "--json")
    assert run.stderr.count("error:") == 1 and len(json.loads(run.stdout)["turns"]) == 1
    assert chat("hello\n", "--guide", "reward:inf").returncode == 2


def test_a_saved_conversation_is_the_present_one(chat: Any, tmp_path: Path) -> None:
    run = chat(f"hello\n/new\ngood day\n/save {tmp_path / 'chat.json'}\n", "--json")
    saved = json.loads((tmp_path / "chat.json").read_text())
    assert [turn["user"] for turn in saved["turns"]] == ["good day"]
    assert len(json.loads(run.stdout)["turns"]) == 2


def test_a_base_without_a_template_does_not_chat(
    otter_here: Otter, tiny_llama: Path, tmp_path: Path
) -> None:
    folder = random_graft(tiny_llama, tmp_path / "g", hidden=8, heads=2, ffn=16)
    run = otter_here("chat", folder)
    assert run.returncode == 2 and "no chat template" in run.stderr


def test_a_word_without_room_begins_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    from otter_cli.cli.chat_terminal import ChatTerminal

    terminal = ChatTerminal()
    monkeypatch.setattr(terminal, "interactive", True)
    monkeypatch.setattr(type(terminal.console), "width", 10)
    shown = [terminal._wrapped(text) for text in ("Hello", " the", "re", " world", "\n", " a")]
    assert "".join(shown) == "Hello there\nworld\n a"


def test_generate_chats_where_there_is_a_template(otter_here: Otter, folder: Path) -> None:
    def text(*options: str) -> tuple[str, str]:
        run = otter_here("generate", folder, "hello", "--max-new-tokens", "6", "--json", *options)
        return json.loads(run.stdout)["text"], run.stderr

    model = load(folder)
    chatted = model.generate([{"role": "user", "content": "hello"}], max_new_tokens=6).text
    by_default, talk = text()
    assert by_default == text("--chat")[0] == chatted and "chat template" in talk
    raw, talk = text("--raw")
    assert raw == model.generate("hello", max_new_tokens=6).text != chatted
    assert "chat template" not in talk


def test_generate_goes_on_from_text_where_there_is_no_template(
    otter_here: Otter, tiny_llama: Path, tmp_path: Path
) -> None:
    folder = random_graft(tiny_llama, tmp_path / "g", hidden=8, heads=2, ffn=16)
    run = otter_here("generate", folder, "hello", "--max-new-tokens", "6", "--json")
    expected = load(folder).generate("hello", max_new_tokens=6).text
    assert json.loads(run.stdout)["text"] == expected and "chat template" not in run.stderr
