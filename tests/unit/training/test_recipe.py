"""Recipes: what is written wrong is refused with its place, its kin and a way out."""

import ast
from pathlib import Path
from typing import Any

import pytest

from otter_cli.cli.recipe_files import recipe_files
from otter_cli.core.errors import OtterError
from otter_cli.training.objectives.labelled import Classification
from otter_cli.training.objectives.pairs import BradleyTerry
from otter_cli.training.recipe import Recipe, load_recipe
from tests.support.training import REWARD, TOXICITY, write_recipe


def _refusal(path: Path, *overrides: str) -> OtterError:
    with pytest.raises(OtterError) as caught:
        load_recipe(path, overrides)
    return caught.value


def test_defaults_and_sections(tmp_path: Path) -> None:
    recipe = load_recipe(write_recipe(tmp_path, {"reward": REWARD, "toxicity": TOXICITY}))
    assert isinstance(recipe.signals["reward"], BradleyTerry)
    assert isinstance(recipe.signals["toxicity"], Classification)
    assert recipe.seed == 0 and recipe.clip == 1.0
    assert recipe.data_folder == tmp_path


@pytest.mark.parametrize(
    ("override", "where", "near"),
    [
        ("stesp=5", "recipe.yaml: unknown key 'stesp'", "steps"),
        ("signals.reward.wieght=2", "signals.reward: unknown key 'wieght'", "weight"),
        ("signals.reward.train.choosen=a", "signals.reward.train: unknown key 'choosen'", "chosen"),
        ("baselines.heads={}", "baselines: unknown key 'heads'", "head"),
    ],
)
def test_an_unknown_key_is_placed_and_the_closest_named(
    tmp_path: Path, override: str, where: str, near: str
) -> None:
    error = _refusal(write_recipe(tmp_path), override)
    assert where in error.what
    assert f"did you mean {near!r}?" in error.hint


@pytest.mark.parametrize(
    ("override", "where"),
    [
        ("steps=0", "steps: it must be greater than 0"),
        ("learning_rate=.nan", "learning_rate: it must be"),
        ("schedule=cosin", "schedule: it must be 'constant', 'linear' or 'cosine'"),
        ("signals={}", "signals: dictionary should have at least 1 item"),
        ("signals.reward.objective=bradly", "signals.reward: there is no objective 'bradly'"),
        ("signals.reward.train={}", "signals.reward.train: give path (a file)"),
        ("signals.reward.held_out=1.5", "signals.reward.held_out: it must be less than 1"),
    ],
)
def test_a_bad_value_is_placed(tmp_path: Path, override: str, where: str) -> None:
    assert where in _refusal(write_recipe(tmp_path), override).what


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"steps: [1\nsignals: {", "line 2: not YAML"),
        (b"- steps", "a recipe is a mapping"),
        (b"", "a recipe is a mapping"),
        (b"steps: 1 # caf\xe9", "byte 15 is not UTF-8"),
    ],
)
def test_a_file_that_is_no_recipe(tmp_path: Path, content: bytes, what: str) -> None:
    path = tmp_path / "broken.yaml"
    path.write_bytes(content)
    error = _refusal(path)
    assert what in error.what and str(path) in error.what


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    assert "nowhere.yaml" in _refusal(tmp_path / "nowhere.yaml").what


def test_overrides_count_more_than_the_file(tmp_path: Path) -> None:
    recipe = load_recipe(write_recipe(tmp_path), ["steps=9", "signals.reward.train.limit=3"])
    assert recipe.steps == 9
    assert recipe.signals["reward"].train.limit == 3


@pytest.mark.parametrize("override", ["steps", "=5", "steps.more=5"])
def test_an_override_that_cannot_be_read(tmp_path: Path, override: str) -> None:
    assert repr(override) in _refusal(write_recipe(tmp_path), override).what


def test_test_data_has_the_columns_of_the_training_data(tmp_path: Path) -> None:
    section: dict[str, Any] = {
        "objective": "classification",
        "train": {"path": "a.csv", "text": "tweet", "mapping": {0: 1, 2: 0}, "limit": 10},
        "test": {"path": "b.csv"},
    }
    signal = load_recipe(write_recipe(tmp_path, {"toxicity": section})).signals["toxicity"]
    assert isinstance(signal, Classification) and signal.test is not None
    assert signal.test.text == "tweet"
    assert signal.test.mapping == {"0": 1.0, "2": 0.0}
    assert signal.test.limit is None


def test_the_digest_knows_content_not_place(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    here, there = write_recipe(tmp_path), write_recipe(tmp_path / "elsewhere")
    assert load_recipe(here).sha256() == load_recipe(there).sha256()
    assert load_recipe(here).sha256() != load_recipe(here, ["steps=7"]).sha256()


def test_a_baseline_changes_only_what_it_says(tmp_path: Path) -> None:
    recipe = load_recipe(write_recipe(tmp_path, baselines={"head": {"learning_rate": 0.5}}))
    head = recipe.for_baseline("head")
    assert head.learning_rate == 0.5 and head.steps == recipe.steps
    assert recipe.for_baseline("separate") == recipe == recipe.for_baseline(None)


def test_some_of_the_signals(tmp_path: Path) -> None:
    recipe = load_recipe(write_recipe(tmp_path, {"reward": REWARD, "toxicity": TOXICITY}))
    assert list(recipe.only(["toxicity"]).signals) == ["toxicity"]
    assert recipe.only(None) == recipe
    with pytest.raises(OtterError, match="no signal 'future'"):
        recipe.only(["future"])


def test_every_recipe_that_ships_is_valid() -> None:
    """Of those that are trained by: plans of a bench's matrix ship as well."""
    trained = [recipe for recipe in recipe_files() if "otter train" in recipe.launch]
    assert len(trained) >= 5
    assert all(isinstance(load_recipe(recipe.path), Recipe) for recipe in trained)


def test_an_objective_is_found_by_its_module_alone() -> None:
    from otter_cli.training import objectives

    folder = Path(objectives.__file__).parent
    written = {
        node.name
        for path in folder.glob("*.py")
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.ClassDef)
        and any(isinstance(n, ast.AnnAssign) and "Literal[" in ast.unparse(n.annotation)
                and ast.unparse(n.target) == "objective" for n in node.body)
    }  # fmt: skip
    assert written == {kind.__name__ for kind in objectives.OBJECTIVES}
    names = [kind.model_fields["objective"].default for kind in objectives.OBJECTIVES]
    assert len(set(names)) == len(names) >= 9
