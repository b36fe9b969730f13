"""`otter train` without a recipe: pairs, labels, texts, a teacher; and `otter data check`."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
import yaml

from otter_cli.teaching import continuations
from tests.conftest import Otter
from tests.support.grafts import chat_base, graft_for

FEW = ("--set", "steps=2", "--set", "batch_size=4", "--set", "evaluate_every=0")


@pytest.fixture
def folder(tiny_llama: Path, tmp_path: Path) -> Path:
    base = chat_base(tiny_llama, tmp_path / "base")
    signals = ("reward", "toxicity", "q=action-reward", "future:2,plain")
    return graft_for(base, tmp_path / "graft", hidden=8, heads=2, ffn=16, signals=signals)


def lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


def words(seed: int) -> str:
    letters = random.Random(seed)
    return " ".join("".join(letters.choices("abcdef", k=4)) for _ in range(5))


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    rows = [
        {"prompt": f"say {i}", "chosen": words(i), "rejected": words(i + 100)} for i in range(40)
    ]
    return lines(tmp_path / "pairs.jsonl", rows)


@pytest.fixture
def labelled(tmp_path: Path) -> Path:
    rows = [{"comment": words(i), "toxic": i % 2, "id": i} for i in range(60)]
    return lines(tmp_path / "labels.jsonl", rows)


def train(otter_here: Otter, folder: Path, *options: object) -> Any:
    run = otter_here("train", folder, *map(str, options), *FEW, "--json")
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout), run.stderr


def test_pairs_train_every_signal_that_pairs_can(
    otter_here: Otter, folder: Path, pairs: Path
) -> None:
    data, talk = train(otter_here, folder, "--pairs", pairs)
    assert set(data["signals"]) == {"reward", "q"}
    assert "objective: bradley-terry" in talk and "positions: every" in talk
    assert "'prompt' is the user's message" in talk and "chat: true" in talk


def test_raw_pairs_are_plain_text(otter_here: Otter, folder: Path, pairs: Path) -> None:
    _, talk = train(otter_here, folder, "--pairs", pairs, "--raw", "--signal", "reward")
    assert "chat: false" in talk


def test_the_saved_recipe_trains_the_same(
    otter_here: Otter, folder: Path, pairs: Path, tmp_path: Path
) -> None:
    saved = tmp_path / "mine.yaml"
    first, _ = train(
        otter_here, folder, "--pairs", pairs, "--signal", "reward", "--save-recipe", saved
    )
    recipe = yaml.safe_load(saved.read_text())
    assert recipe["steps"] == 2 and recipe["signals"]["reward"]["train"]["path"] == str(pairs)
    weights = (folder / "otter.safetensors").read_bytes()
    again = tmp_path / "again"
    graft_for(folder.parent / "base", again, hidden=8, heads=2, ffn=16, signals=(
        "reward", "toxicity", "q=action-reward", "future:2,plain"))  # fmt: skip
    run = otter_here("train", again, "--recipe", saved, "--json")
    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout)["signals"] == first["signals"]
    assert (again / "otter.safetensors").read_bytes() == weights


def test_a_test_file_takes_the_place_of_held_out_rows(
    otter_here: Otter, folder: Path, pairs: Path, tmp_path: Path
) -> None:
    rows = [{"prompt": "x", "chosen": words(i), "rejected": words(i + 7)} for i in range(300, 306)]
    test = lines(tmp_path / "test.jsonl", rows)
    data, talk = train(otter_here, folder, "--pairs", pairs, "--test", test, "--signal", "reward")
    assert data["signals"]["reward"]["accuracy"]["n"] == 6 and "held_out" not in talk


def test_labels_with_named_columns(otter_here: Otter, folder: Path, labelled: Path) -> None:
    data, _ = train(
        otter_here, folder, "--labels", labelled, "--text", "comment", "--label", "toxic"
    )
    assert set(data["signals"]) == {"reward", "toxicity", "q"}
    assert data["signals"]["toxicity"]["auroc"]["n"] >= 3


def test_texts_train_future_tokens(otter_here: Otter, folder: Path, tmp_path: Path) -> None:
    path = lines(tmp_path / "texts.jsonl", [{"text": words(i)} for i in range(200)])
    data, _ = train(otter_here, folder, "--texts", path, "--set", "max_length=32")
    assert set(data["signals"]) == {"future"}


def test_a_teacher_labels_what_the_base_writes(
    otter_here: Otter, folder: Path, tmp_path: Path
) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("".join(f"{words(i)}\n" for i in range(12)))
    teacher = "python:tests.unit.teaching.test_teach:letters"
    options = ("--teacher", teacher, "--prompts", prompts, "--signal", "reward")
    data, talk = train(otter_here, folder, *options, "--samples", 3, "--new-tokens", 6)
    assert set(data["signals"]) == {"reward"} and "eos: false" in talk
    assert list((folder / "training" / "taught").glob("rows-*.jsonl"))


def test_ctrl_c_while_the_base_writes_and_the_same_command_again(
    otter_here: Otter, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("".join(f"{words(i)}\n" for i in range(12)))
    teacher = "python:tests.unit.teaching.test_teach:letters"
    options = ("--teacher", teacher, "--prompts", prompts, "--signal", "reward", *FEW)
    write, calls = continuations._generate, []

    def stopped_at_second(*arguments: Any) -> Any:
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return write(*arguments)

    monkeypatch.setattr(continuations, "_generate", stopped_at_second)
    run = otter_here("train", folder, *options, "--new-tokens", 6)
    assert run.returncode == 130 and "interrupted" in run.stderr
    run = otter_here("train", folder, *options, "--new-tokens", 6)
    assert run.returncode == 0 and "8 of 12 prompts are continued already" in run.stderr


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ((), "nothing to train on"),
        (("--pairs", "{pairs}", "--recipe", "x"), "given together"),
        (("--teacher", "detoxify"), "go together"),
        (("--pairs", "{pairs}", "--label", "x"), "--label goes with"),
        (("--pairs", "nowhere.jsonl"), "is not a file"),
        (("--texts", "{pairs}", "--signal", "reward"), "trains signals of kind future"),
        (("--pairs", "{pairs}", "--signal", "rewrd"), "no signal 'rewrd'"),
        (("--pairs", "{pairs}", "--samples", "8"), "--samples goes with"),
        (("--labels", "{pairs}", "--new-tokens", "8"), "--new-tokens goes with"),
        (("--recipe", "x", "--raw"), "--raw goes with"),
        (("--recipe", "x", "--save-recipe", "y"), "--save-recipe goes with"),
        (("--pairs", "{pairs}", "--data", "."), "--data goes with"),
    ],
)
def test_data_options_that_do_not_fit(
    otter_here: Otter, folder: Path, pairs: Path, options: tuple[str, ...], words: str
) -> None:
    run = otter_here("train", folder, *(o.format(pairs=pairs) for o in options))
    assert run.returncode == 2 and words in run.stderr and "hint:" in run.stderr


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--signal", "future"), "trains signals of kind"),
        (("--label", "letters", "--label", "half"), "takes 1 of the teacher's scores"),
    ],
)
def test_what_a_teacher_cannot_train_is_refused_before_the_base_writes(
    otter_here: Otter, folder: Path, tmp_path: Path, options: tuple[str, ...], words: str
) -> None:
    (tmp_path / "prompts.txt").write_text("hello\n")
    teacher = ("--teacher", "python:no_such_module:f", "--prompts", tmp_path / "prompts.txt")
    run = otter_here("train", folder, *teacher, *options)
    assert run.returncode == 2 and words in run.stderr
    assert not (folder / "training" / "taught").exists()


def test_several_sections_of_one_file_are_written_without_references(
    otter_here: Otter, folder: Path, labelled: Path, tmp_path: Path
) -> None:
    saved = tmp_path / "recipe.yaml"
    options = ("--text", "comment", "--label", "toxic", "--save-recipe", saved)
    train(otter_here, folder, "--labels", labelled, *options)
    assert not set("&*") & set(saved.read_text())


def test_pairs_of_equal_texts_alone_are_refused(
    otter_here: Otter, folder: Path, tmp_path: Path
) -> None:
    path = lines(tmp_path / "p.jsonl", [{"chosen": "a", "rejected": "a"}] * 25)
    run = otter_here("train", folder, "--pairs", path)
    assert run.returncode == 2 and "no row to train on" in run.stderr
    assert "otter data check" in run.stderr


def check(otter_here: Otter, *options: object) -> Any:
    run = otter_here("data", "check", *map(str, options), "--json")
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


def test_a_check_counts_pairs(otter_here: Otter, folder: Path, tmp_path: Path) -> None:
    rows = [{"prompt": f"p{i}", "chosen": words(i), "rejected": words(i + 9)} for i in range(8)]
    rows += [rows[0], {"prompt": "p", "chosen": "same", "rejected": "same"}]
    data = check(otter_here, lines(tmp_path / "p.jsonl", rows), "--base", folder, "--max-length", 9)
    assert (data["kind"], data["rows"], data["duplicates"]) == ("pairs", 10, 1)
    assert data["columns"] == {"chosen": "chosen", "rejected": "rejected", "prompt": "prompt"}
    assert data["unit"] == "tokens" and data["cut"] >= 16 and data["identical"] >= 1


def test_a_check_counts_classes_and_names_ignored_columns(
    otter_here: Otter, labelled: Path
) -> None:
    data = check(otter_here, labelled, "--text", "comment", "--label", "toxic")
    assert data["classes"] == {"0": 30, "1": 30} and data["ignored"] == ["id"]
    assert data["unit"] == "characters"
    page = otter_here("data", "check", labelled, "--text", "comment", "--label", "toxic").stdout
    words = " ".join(page.split())
    assert "otter train OUT --labels" in words and "--text comment --label toxic" in words


def test_a_check_of_messages_counts_the_templates_tokens(
    otter_here: Otter, folder: Path, tmp_path: Path
) -> None:
    from otter_cli.model.load import load_tokenizer

    messages = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "abc"}]
    path = lines(tmp_path / "m.jsonl", [{"messages": messages, "label": 1}] * 3)
    data = check(otter_here, path, "--base", folder)
    ids = load_tokenizer(folder).apply_chat_template(messages, tokenize=True, return_dict=False)
    assert data["chat"] and data["lengths"]["longest"] == len(ids) and data["duplicates"] == 2


@pytest.mark.parametrize(
    ("rows", "options", "words"),
    [
        ([], (), "is empty"),
        ([{"a": 1}], (), "which column is a text"),
        ([{"text": "x"}], ("--text", "y"), "no column 'y'"),
    ],
)
def test_a_file_that_cannot_be_read_as_data(
    otter_here: Otter, tmp_path: Path, rows: list[Any], options: tuple[str, ...], words: str
) -> None:
    run = otter_here("data", "check", lines(tmp_path / "x.jsonl", rows), *options)
    assert run.returncode == 2 and words in run.stderr


def test_a_teacher_is_refused_under_torchrun(
    otter_here: Otter, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each process would write the same texts."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    (tmp_path / "prompts.txt").write_text("hello\n")
    teacher = ("--teacher", "python:x:f", "--prompts", tmp_path / "prompts.txt")
    run = otter_here("train", folder, *teacher, "--signal", "reward")
    assert run.returncode == 2 and "torchrun" in run.stderr


SHAPES = {
    "words": ("v1,v2", ["{word},a {i} b c"], "ham = 0, spam = 1"),
    "capitals and semicolons": ("Text;Label", ["a {i} b c;{bit}"], "the text is 'Text'"),
    "other names": ("id,comment_text,is_toxic", ["{i},a {i} b c,{bit}"], "label is 'is_toxic'"),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_a_first_csv_trains_without_naming_a_column(
    otter_here: Otter, folder: Path, tmp_path: Path, shape: str
) -> None:
    header, (row,), said = SHAPES[shape]
    path = tmp_path / "first.csv"
    rows = [row.format(i=i, bit=i % 2, word=("ham", "spam")[i % 2]) for i in range(60)]
    path.write_text("\n".join([header, *rows]) + "\n")
    data, talk = train(otter_here, folder, "--labels", path, "--signal", "toxicity")
    assert said in talk and data["signals"]["toxicity"]["auroc"]["n"] >= 3


def test_labels_that_need_a_mapping_say_the_options_and_take_them(
    otter_here: Otter, folder: Path, tmp_path: Path
) -> None:
    path = tmp_path / "classes.csv"
    rows = [f"a {i} b c,{i % 3}" for i in range(60)]
    path.write_text("\n".join(["tweet,class", *rows]) + "\n")
    options = ("train", folder, "--labels", path, "--signal", "toxicity", *FEW)
    refused = otter_here(*options)
    assert refused.returncode == 2 and "--map 0=NUMBER --map 1=NUMBER" in refused.stderr
    mapped = otter_here(*options, "--map", "0=1", "--map", "1=1", "--map", "2=0", "--json")
    assert mapped.returncode == 0, mapped.stderr
    wrong = otter_here(*options, "--map", "0:1")
    assert wrong.returncode == 2 and "--map '0:1' is no VALUE=NUMBER" in wrong.stderr


def test_a_column_of_plain_texts_may_have_any_name(
    otter_here: Otter, folder: Path, tmp_path: Path
) -> None:
    path = lines(tmp_path / "texts.jsonl", [{"story": words(i)} for i in range(200)])
    for named in ((), ("--text", "story")):
        few = ("--set", "max_length=32", "--restart")
        data, _ = train(otter_here, folder, "--texts", path, *named, *few)
        assert set(data["signals"]) == {"future"}
