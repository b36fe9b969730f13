from pathlib import Path

import pytest

from otter_cli.core.errors import OtterError
from otter_cli.data.paths import find_data


def test_beside_the_recipe_goes_before_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    beside, here = tmp_path / "recipes", tmp_path / "here"
    for folder in (beside, here):
        folder.mkdir()
        (folder / "a.jsonl").touch()
    (here / "b.jsonl").touch()
    monkeypatch.chdir(here)
    assert find_data("a.jsonl", beside) == beside / "a.jsonl"
    assert find_data("b.jsonl", beside) == Path("b.jsonl")
    assert find_data("a.jsonl") == Path("a.jsonl")


@pytest.mark.parametrize("name", ["$OTTER_TEST/a.jsonl", "${OTTER_TEST}/a.jsonl"])
def test_variables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    (tmp_path / "a.jsonl").touch()
    monkeypatch.setenv("OTTER_TEST", str(tmp_path))
    assert find_data(name, Path("elsewhere")) == tmp_path / "a.jsonl"


def test_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.jsonl").touch()
    monkeypatch.setenv("HOME", str(tmp_path))
    assert find_data("~/a.jsonl") == tmp_path / "a.jsonl"


def test_an_unset_variable_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OTTER_TEST", raising=False)
    with pytest.raises(OtterError, match=r"\$OTTER_TEST is not set") as raised:
        find_data("$OTTER_TEST/a.jsonl")
    assert "export OTTER_TEST=" in raised.value.hint


def test_a_missing_file_says_where_it_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(OtterError, match="not found; looked for") as raised:
        find_data("a.jsonl", tmp_path)
    assert str(tmp_path / "a.jsonl") in raised.value.what
