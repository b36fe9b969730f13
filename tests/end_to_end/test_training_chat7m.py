"""The shipped ParaDetox recipe on the real base and data, a fifth of its length."""

from pathlib import Path

import pytest

from otter_cli.training.recipe import load_recipe
from otter_cli.training.run import TrainResult, train
from tests.support.grafts import graft_for

STEPS = 50


@pytest.fixture(scope="module")
def results(
    shared: Path, repository: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, TrainResult]:
    folder = tmp_path_factory.mktemp("paradetox")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OTTER_SHARED", str(shared))
        recipe = load_recipe(
            repository / "recipes" / "preference" / "paradetox.yaml",
            [f"steps={STEPS}", "evaluate_every=0", "signals.reward.test.limit=400"],
        )
        out = graft_for(
            shared / "models" / "chat-7m", folder / "graft", signals=("reward",),
            hidden=32, heads=1, ffn=88,
        )  # fmt: skip
        return {
            "insertion": train(out, recipe),
            "head": train(out, recipe, baseline="head", to=folder / "head"),
        }


@pytest.mark.slow
def test_the_insertion_beats_task_head_only_with_intervals_apart(
    results: dict[str, TrainResult],
) -> None:
    insertion = results["insertion"].signals["reward"]["accuracy"]
    head = results["head"].signals["reward"]["accuracy"]
    assert insertion.n == head.n == 400
    assert insertion.mean > 0.95
    assert insertion.low > head.high


@pytest.mark.slow
def test_both_saw_the_same_data_for_the_same_steps(results: dict[str, TrainResult]) -> None:
    insertion, head = results["insertion"], results["head"]
    assert insertion.data == head.data
    assert insertion.steps == head.steps == STEPS
    assert head.trained_parameters == 256
