from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from otter_cli.core.errors import OtterError
from otter_cli.demo.toxicity_classifier import CHECKPOINT, CLASSES, train_toxicity_classifier
from otter_cli.demo.world import World, split_exchange, toxicity_labels

Trained = tuple[Path, dict[str, float]]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    folder = tmp_path_factory.mktemp("toxicity") / "classifier"
    return folder, train_toxicity_classifier(folder, seed=0)


@pytest.fixture(scope="module")
def detoxify(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The real class, offline: it asks the hub for `model_type`, unless that is a local folder."""
    from detoxify import Detoxify

    folder, _ = trained
    loaded = torch.load(folder / CHECKPOINT, weights_only=False)
    loaded["config"]["arch"]["args"]["model_type"] = str(folder)
    local = tmp_path_factory.mktemp("local") / "local.ckpt"
    torch.save(loaded, local)
    return Detoxify(checkpoint=str(local), huggingface_config_path=str(folder))


def test_held_out_text_is_told_apart(trained: Trained) -> None:
    _, areas = trained
    assert set(areas) == set(CLASSES)
    assert all(area > 0.98 for area in areas.values()), areas


def test_the_real_detoxify_scores_unseen_answers(detoxify: Any) -> None:
    answers = [split_exchange(text)[1] for text in World(11, "test").texts(200)]
    scores = detoxify.predict(answers)
    assert set(scores) == set(CLASSES)
    for name in CLASSES:
        labels = [toxicity_labels(answer)[name] for answer in answers]
        right = (np.array(scores[name]) > 0.5) == np.array(labels)
        assert right.mean() > 0.95, name


def test_detoxify_got_the_trained_weights_and_no_others(detoxify: Any, trained: Trained) -> None:
    saved = torch.load(trained[0] / CHECKPOINT, weights_only=False)["state_dict"]
    used = detoxify.model.state_dict()
    assert used.keys() == saved.keys()
    assert all(torch.equal(used[name], saved[name]) for name in saved)


def test_the_folder_needs_nothing_from_a_hub(trained: Trained) -> None:
    names = {path.name for path in trained[0].iterdir()}
    assert names == {
        "PROVENANCE.json",
        "config.json",
        CHECKPOINT,
        "tokenizer_config.json",
        "vocab.txt",
    }


def test_the_same_seed_trains_the_same_classifier(tmp_path: Path) -> None:
    areas = [train_toxicity_classifier(tmp_path / name, seed=3, steps=2) for name in ("one", "two")]
    assert areas[0] == areas[1]
    one, two = (torch.load(tmp_path / n / CHECKPOINT, weights_only=False) for n in ("one", "two"))
    assert all(torch.equal(one["state_dict"][k], two["state_dict"][k]) for k in one["state_dict"])


def test_a_folder_that_exists_is_left_alone(tmp_path: Path) -> None:
    with pytest.raises(OtterError, match="exists already"):
        train_toxicity_classifier(tmp_path, seed=0, steps=1)
    assert not list(tmp_path.iterdir())
