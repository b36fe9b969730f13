import json
from pathlib import Path

import pytest

from otter_cli.core.errors import OtterError
from otter_cli.data.pairs import read_pairs
from otter_cli.data.prompts import read_prompts
from otter_cli.data.texts import read_labelled, read_texts
from otter_cli.demo.world import World, split_of, write_world


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_world(
        tmp_path_factory.mktemp("world") / "data", seed=3, train_rows=40, test_rows=20
    )


@pytest.mark.parametrize(("split", "rows"), [("train", 40), ("test", 20)])
def test_the_package_reads_every_file_back(world: Path, split: str, rows: int) -> None:
    pairs = read_pairs(world / f"preference.{split}.jsonl")
    labelled = read_labelled(
        world / f"toxicity.{split}.jsonl", text="text", labels=["toxicity", "insult", "threat"]
    )
    assert len(pairs) == len(labelled) == rows
    assert len(read_texts(world / f"text.{split}.jsonl")) == rows


def test_files_hold_what_the_world_says(world: Path) -> None:
    rows = (world / "preference.train.jsonl").read_text().splitlines()
    assert [json.loads(row) for row in rows] == World(3, "train").pairs(40)


def test_prompts_are_held_out(world: Path) -> None:
    prompts = [prompt.text for prompt in read_prompts(world / "prompts.jsonl")]
    assert len(prompts) == 20
    assert {split_of(prompt) for prompt in prompts} == {"test"}


def test_files_are_the_same_byte_for_byte(world: Path, tmp_path: Path) -> None:
    again = write_world(tmp_path / "again", seed=3, train_rows=40, test_rows=20)
    names = sorted(path.name for path in world.iterdir())
    assert names == sorted(path.name for path in again.iterdir())
    assert all((world / name).read_bytes() == (again / name).read_bytes() for name in names)


def test_a_folder_that_exists_is_left_alone(world: Path) -> None:
    before = (world / "prompts.jsonl").read_bytes()
    with pytest.raises(OtterError, match="exists already"):
        write_world(world, seed=4)
    assert (world / "prompts.jsonl").read_bytes() == before
