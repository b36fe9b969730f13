import json
from pathlib import Path

import pytest

from otter_cli.cli import recipe_files
from otter_cli.cli.main import main
from otter_cli.core.errors import OtterError

HEADER = "# Rewards on the demo's pairs\n# otter train OUT --recipe demo/reward.yaml\nseed: 1\n"


@pytest.fixture
def shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    root = tmp_path / "recipes"
    (root / "demo").mkdir(parents=True)
    (root / "demo" / "reward.yaml").write_text(HEADER)
    (root / "bare.yaml").write_text("seed: 2\n")
    monkeypatch.setattr(recipe_files, "recipe_root", lambda: root)
    return root


def test_ls_names_and_describes(shipped: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)["recipes"]
    assert [recipe["name"] for recipe in listed] == ["bare", "demo/reward"]
    assert listed[1]["summary"] == "Rewards on the demo's pairs"
    assert listed[1]["launch"] == "otter train OUT --recipe demo/reward.yaml"
    assert listed[0]["summary"] == ""


def test_ls_is_what_recipes_does_by_itself(
    shipped: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["recipes"])
    alone = capsys.readouterr().out
    main(["recipes", "ls"])
    assert capsys.readouterr().out == alone
    assert "demo/reward" in alone


def test_show_prints_the_file_as_it_is(shipped: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes", "show", "demo/reward"]) == 0
    assert capsys.readouterr().out == HEADER


def test_cp_to_a_file_and_into_a_folder(shipped: Path, tmp_path: Path) -> None:
    assert main(["recipes", "cp", "demo/reward", str(tmp_path / "mine.yaml")]) == 0
    assert main(["recipes", "cp", "demo/reward.yaml", str(tmp_path)]) == 0
    assert (tmp_path / "mine.yaml").read_text() == HEADER
    assert (tmp_path / "reward.yaml").read_text() == HEADER


def test_cp_never_overwrites(
    shipped: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.yaml").write_text("precious")
    assert main(["recipes", "cp", "bare", str(tmp_path / "mine.yaml")]) == 2
    assert "exists" in capsys.readouterr().err
    assert (tmp_path / "mine.yaml").read_text() == "precious"


def test_an_unknown_recipe_names_the_closest(shipped: Path) -> None:
    with pytest.raises(OtterError, match="'demo/rewrad'") as raised:
        recipe_files.find_recipe("demo/rewrad")
    assert raised.value.hint == "did you mean demo/reward?"


def test_every_recipe_that_ships_says_what_it_does() -> None:
    assert recipe_files.recipe_root().is_dir()
    for recipe in recipe_files.recipe_files():
        assert recipe.summary, f"{recipe.name}: the first line must say what it does"
        assert "otter " in recipe.launch, f"{recipe.name}: the second line must launch it"
