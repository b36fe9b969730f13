"""Training and generation take texts of the same lengths."""

from pathlib import Path
from typing import Any

import pytest

from otter_cli.core.errors import OtterError
from otter_cli.decoding.generate import generate
from otter_cli.decoding.sampling import Sampling
from otter_cli.model.otter import OtterForCausalLM
from otter_cli.training.run import train
from tests.support.training import small_graft, small_recipe

LONGROPE = {
    "original_max_position_embeddings": 12,
    "rope_parameters": {
        "rope_type": "longrope",
        "rope_theta": 1e4,
        "short_factor": [1.1] * 4,
        "long_factor": [2.5] * 4,
    },
}
DYNAMIC = {"rope_scaling": {"rope_type": "dynamic", "factor": 4.0}, "max_position_embeddings": 12}


def _generate(folder: Path, prompt: int, new: int) -> list[int]:
    model = OtterForCausalLM.from_pretrained(folder)
    (row,) = generate(model, [[5] * prompt], Sampling(new, ignore_eos=True))
    return row.tokens


@pytest.mark.parametrize(
    ("family", "config", "message", "longest"),
    [
        ("llama", {"max_position_embeddings": 12}, "the base has 12 positions", 12),
        ("llama", DYNAMIC, "the base has 12 positions", 12),
        ("phi3", LONGROPE, r"longrope angles of this phi3 change after 12 tokens", 12),
    ],
    ids=["positions", "dynamic", "longrope"],
)
def test_texts_that_the_base_cannot_read_are_refused_before_the_first_step(
    tiny_checkpoint: Any, tmp_path: Path, family: str, config: Any, message: str, longest: int
) -> None:
    base = tiny_checkpoint(family, **config)
    folder = small_graft(base, tmp_path / "g")
    with pytest.raises(OtterError, match=message):
        train(folder, small_recipe(tmp_path, steps=1))
    recipe = small_recipe(tmp_path, steps=1, max_length=longest, allow_truncation=1.0)
    assert train(folder, recipe).steps == 1
    assert len(_generate(folder, longest - 2, 2)) == 2


def test_yarn_trains_and_generates_past_the_original_window(
    tiny_checkpoint: Any, tmp_path: Path
) -> None:
    yarn = {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}, "max_position_embeddings": 12}
    folder = small_graft(tiny_checkpoint("llama", **yarn), tmp_path / "g")
    assert train(folder, small_recipe(tmp_path, steps=1)).steps == 1
    assert len(_generate(folder, 40, 8)) == 8
    with pytest.raises(OtterError, match="window of 48"):
        _generate(folder, 41, 8)
