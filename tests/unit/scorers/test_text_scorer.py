"""Teachers by what a user types."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from otter_cli.core.errors import OtterError
from otter_cli.model.load import load_tokenizer
from otter_cli.model.otter import OtterForCausalLM
from otter_cli.scorers.text_scorer import load_text_scorer
from tests.support.grafts import random_graft

MODULE = """
def length(text):
    return len(text) / 100


def two(text):
    return {"length": len(text), "spaces": text.count(" ")}


def broken(text):
    return float("nan")


def moody(text):
    return {"a": 1} if text == "a text" else {"b": 1}


def failing(text):
    raise ValueError("no")


def later(text):
    return 1 / (text == "a text")


def leaving(text):
    raise SystemExit(0)


def nothing_at_all(text):
    return {}


not_a_function = 3
"""


@pytest.fixture(autouse=True)
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_teacher.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    sys.modules.pop("my_teacher", None)


def test_a_function_gives_one_number_or_several() -> None:
    one = load_text_scorer("python:my_teacher:length")
    assert one.names == ("score",) and one.score(["abc", "a"]) == [[0.03], [0.01]]
    two = load_text_scorer("python:my_teacher:two")
    assert two.names == ("length", "spaces") and two.score(["a b"]) == [[3.0, 1.0]]
    assert two.indices_of(["spaces"]) == [1]


def test_a_changed_function_has_another_digest(tmp_path: Path) -> None:
    before = load_text_scorer("python:my_teacher:length").digest
    (tmp_path / "my_teacher.py").write_text(MODULE + "\n# changed\n")
    sys.modules.pop("my_teacher", None)
    assert load_text_scorer("python:my_teacher:length").digest != before


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("python:my_teacher", "names no function"),
        ("python:no_such_module:f", "importing no_such_module failed"),
        ("python:my_teacher:nothing", "no function 'nothing'"),
        ("python:my_teacher:not_a_function", "no function"),
        ("python:my_teacher:broken", "returned nan"),
        ("nowhere", "is not a folder"),
    ],
)
def test_what_is_no_teacher_is_refused(text: str, words: str) -> None:
    with pytest.raises(OtterError, match=words):
        load_text_scorer(text)


def test_a_teacher_that_changes_its_names_is_refused() -> None:
    scorer = load_text_scorer("python:my_teacher:moody")
    with pytest.raises(OtterError, match="same names|returned b"):
        scorer.score(["other"])


def test_an_unknown_score_names_the_known_ones() -> None:
    with pytest.raises(OtterError, match="gives no 'spacs'"):
        load_text_scorer("python:my_teacher:two").indices_of(["spacs"])


def test_a_detoxify_folder_gives_its_six_classes(shared: Path) -> None:
    scorer = load_text_scorer(str(shared / "models" / "detoxify-mini"))
    assert len(scorer.names) == 6 and "toxicity" in scorer.names
    kind, rude = scorer.score(["have a lovely day", "you are a stupid idiot"])
    column = scorer.names.index("toxicity")
    assert kind[column] < rude[column]


def test_a_repository_of_the_hub_needs_its_revision() -> None:
    with pytest.raises(OtterError, match="is not a folder") as error:
        load_text_scorer("somebody/classifier")
    assert "@revision" in str(error.value.hint)


@pytest.mark.parametrize("name", ["failing", "later", "leaving", "nothing_at_all"])
def test_a_function_that_fails_is_the_teachers_fault(name: str) -> None:
    with pytest.raises(OtterError, match=f"my_teacher:{name}"):
        load_text_scorer(f"python:my_teacher:{name}").score(["other"])


def test_the_working_folder_hides_no_module_after_the_import(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`otter` itself is started from another folder than the user's."""
    path = [entry for entry in sys.path if entry not in ("", str(tmp_path))]
    monkeypatch.setattr(sys, "path", path)
    assert load_text_scorer("python:my_teacher:length").names == ("score",)
    assert sys.path[0] == path[0] and "" not in sys.path
    assert load_text_scorer("python:my_teacher:two").names == ("length", "spaces")
    assert sys.path.count(str(tmp_path)) == 1


def test_a_graft_with_several_values_is_loaded_once(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its signals teach in turns, batch after batch."""
    graft = random_graft(
        tiny_llama, tmp_path / "g", hidden=8, heads=2, ffn=16, signals=("reward", "polite=value")
    )
    load, loaded = OtterForCausalLM.from_pretrained, []

    def counted(*arguments: Any, **options: Any) -> Any:
        loaded.append(arguments)
        return load(*arguments, **options)

    monkeypatch.setattr(OtterForCausalLM, "from_pretrained", counted)
    scorer = load_text_scorer(str(graft))
    assert scorer.names == ("reward", "polite")
    first, again = scorer.score(["abc", "hello"]), scorer.score(["abc"])
    assert len(loaded) == 1 and again[0] == pytest.approx(first[0], abs=1e-5)
    model, tokenizer = load(graft), load_tokenizer(graft)
    with torch.no_grad():
        signals = model(torch.tensor([tokenizer("abc")["input_ids"]])).signals
    expected = [float(signals[name][0, -1]) for name in scorer.names]
    assert first[0] == pytest.approx(expected, abs=1e-5)
