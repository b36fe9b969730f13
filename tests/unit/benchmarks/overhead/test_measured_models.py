"""Insertions of a wanted size, and a checkpoint of headers alone."""

from pathlib import Path

import pytest

from otter_cli.benchmarks.options import SHAPE_NAMES
from otter_cli.benchmarks.overhead.commands import hollow_checkpoint
from otter_cli.benchmarks.overhead.measured_models import (
    SHAPES,
    SWEEP,
    SizedPart,
    plan_of_share,
    shape_config,
)
from otter_cli.checkpoint.folder import Checkpoint
from otter_cli.families.shape import base_parameters, base_shape

PARAMETERS = {"llama-134m": 134_105_856, "qwen3-0.6b": 596_049_920, "llama-7b": 6_738_415_616}


@pytest.mark.parametrize("spent", ["FFN", "both"])
@pytest.mark.parametrize("share", SWEEP)
def test_a_plan_comes_within_a_fifth_of_the_share_asked_for(share: float, spent: SizedPart) -> None:
    shape = base_shape(shape_config("llama-134m").to_dict())
    plan = plan_of_share(shape, PARAMETERS["llama-134m"], share, spent)
    found = plan.parameters / PARAMETERS["llama-134m"]
    # One head over a quarter of the layers is the least that attention can have.
    assert found == pytest.approx(share, rel=0.2) or (spent == "both" and share < 0.005)
    assert (plan.config.heads == 0) == (spent == "FFN")


def test_attention_alone_has_no_ffn_units() -> None:
    shape = base_shape(shape_config("llama-134m").to_dict())
    plan = plan_of_share(shape, PARAMETERS["llama-134m"], 0.1, "attention")
    assert plan.config.ffn == 0 < plan.config.heads


@pytest.mark.parametrize("name", PARAMETERS)
def test_a_hollow_checkpoint_has_the_tensors_of_its_shape(tmp_path: Path, name: str) -> None:
    hollow_checkpoint(name, tmp_path / name)
    base = Checkpoint.open(tmp_path / name)
    shape = base_shape(base.config)
    assert base_parameters(base, shape) == PARAMETERS[name]
    assert shape.layers == SHAPES[name]["num_hidden_layers"]
    # Holes: nothing of the gigabytes is on the disk.
    blocks = sum(512 * path.stat().st_blocks for path in (tmp_path / name).iterdir())
    assert blocks < 2**20


def test_the_command_line_names_every_shape() -> None:
    assert set(SHAPE_NAMES) == set(SHAPES)
