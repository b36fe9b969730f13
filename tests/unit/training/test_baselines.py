"""Task head only and the separate model, by the same recipe as the insertion."""

from pathlib import Path

import pytest

from otter_cli.core.errors import OtterError
from otter_cli.graft.manifest import Manifest
from otter_cli.model.otter import OtterForCausalLM
from otter_cli.training.baselines.separate import TRAINING_RECORD_FILE
from otter_cli.training.run import train
from tests.support.training import REWARD, TOXICITY, small_graft, small_recipe


def test_task_head_only_is_a_graft_without_a_stream(folder: Path, tmp_path: Path) -> None:
    to = tmp_path / "head"
    recipe = small_recipe(tmp_path, baselines={"head": {"learning_rate": 0.05}})
    result = train(folder, recipe, baseline="head", to=to)
    assert result.folder == to and result.steps == recipe.steps
    (config,) = Manifest.read(to).insertions
    assert (config.hidden, config.heads, config.ffn) == (0, 0, 0)
    assert result.trained_parameters == 32
    assert list(OtterForCausalLM.from_pretrained(to).signal_configs) == ["reward"]
    assert Manifest.read(to).base.files == Manifest.read(folder).base.files


def test_the_separate_model_learns_the_same_data(folder: Path, tmp_path: Path) -> None:
    to = tmp_path / "separate"
    recipe = small_recipe(tmp_path, steps=30)
    result = train(folder, recipe, baseline="separate", to=to)
    assert result.signals["reward"]["accuracy"].mean > 0.9
    assert result.data == train(folder, recipe).data
    assert (to / TRAINING_RECORD_FILE).is_file()


def test_a_baseline_leaves_the_graft_alone(folder: Path, tmp_path: Path) -> None:
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    train(folder, small_recipe(tmp_path), baseline="head", to=tmp_path / "head")
    train(folder, small_recipe(tmp_path), baseline="separate", to=tmp_path / "separate")
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before


@pytest.mark.parametrize("baseline", ["head", "separate"])
def test_an_existing_target_is_only_resumed(folder: Path, tmp_path: Path, baseline) -> None:
    recipe, to = small_recipe(tmp_path), tmp_path / "baseline"
    first = train(folder, recipe, baseline=baseline, to=to)
    with pytest.raises(OtterError, match="exists already"):
        train(folder, recipe, baseline=baseline, to=to)
    again = train(folder, recipe, baseline=baseline, to=to, resume=True)
    assert again.signals == first.signals


def test_a_separate_model_gives_one_signal(tiny_llama: Path, tmp_path: Path) -> None:
    folder = small_graft(tiny_llama, tmp_path / "graft", "reward", "toxicity")
    recipe = small_recipe(tmp_path, {"reward": REWARD, "toxicity": TOXICITY})
    with pytest.raises(
        OtterError, match="a separate baseline gives one signal; the recipe trains reward, toxicity"
    ):
        train(folder, recipe, baseline="separate", to=tmp_path / "separate")
    result = train(folder, recipe.only(["toxicity"]), baseline="separate", to=tmp_path / "separate")
    assert set(result.signals) == {"toxicity"}


def test_a_signal_that_the_graft_lacks(folder: Path, tmp_path: Path) -> None:
    recipe = small_recipe(tmp_path, {"toxicity": TOXICITY})
    with pytest.raises(OtterError, match="signal 'toxicity', which"):
        train(folder, recipe, baseline="head", to=tmp_path / "head")
    assert not (tmp_path / "head").exists()


@pytest.mark.parametrize("arguments", [{"baseline": "head"}, {"to": Path("somewhere")}])
def test_baseline_and_to_go_together(folder: Path, tmp_path: Path, arguments) -> None:
    with pytest.raises(OtterError, match="go together"):
        train(folder, small_recipe(tmp_path), **arguments)


def test_bad_data_leaves_no_half_made_baseline(folder: Path, tmp_path: Path) -> None:
    recipe = small_recipe(tmp_path)
    (tmp_path / "pairs.jsonl").write_text("not json\n")
    with pytest.raises(OtterError, match="line 1: not JSON"):
        train(folder, recipe, baseline="separate", to=tmp_path / "separate")
    assert not (tmp_path / "separate").exists()


def test_every_baseline_has_a_name_settings_and_an_entry() -> None:
    from otter_cli.training.baselines import BASELINES
    from otter_cli.training.recipe import BASELINE_NAMES, AllBaselineSettings

    assert set(BASELINE_NAMES) == {"head", *BASELINES}
    assert {name.replace("-", "_") for name in BASELINE_NAMES} == set(
        AllBaselineSettings.model_fields
    )
