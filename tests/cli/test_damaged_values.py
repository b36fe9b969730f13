"""A value of the wrong type in any file of a checkpoint: a verb works, or names the file. It never
calls that a fault of otter's own, never hangs, and never blames a value that is sound."""

import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest

from tests.conftest import Otter
from tests.support.damaged_runs import VERBS, count_damages, graft_of, try_damage, write_recipe
from tests.support.damaged_values import FILES, Damage, damage, damages


@pytest.fixture(autouse=True)
def _no_bars() -> Iterator[None]:
    from transformers.utils import logging

    logging.disable_progress_bar()
    yield
    logging.enable_progress_bar()


@pytest.fixture(scope="module")
def folders(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {
        "base": tiny_llama,
        "graft": graft_of(tiny_llama, tmp_path_factory.mktemp("damaged") / "g"),
    }


@pytest.fixture
def beside(tmp_path: Path) -> Path:
    write_recipe(tmp_path)
    return tmp_path


def _sample(folder: Path, count: int, seed: int) -> list[Damage]:
    return Random(seed).sample(list(damages(folder)), count)


def test_every_file_is_damaged(folders: dict[str, Path]) -> None:
    counts = Counter(name for name, _, _ in damages(folders["base"]))
    assert set(counts) == set(FILES) and min(counts.values()) > 20


def test_generating(otter_here: Otter, folders: dict[str, Path], beside: Path) -> None:
    for damaged in _sample(folders["base"], 60, seed=1):
        try_damage(otter_here, "generate", damaged, folders, beside)


@pytest.mark.parametrize("verb", ["train", "inspect", "doctor", "verify", "graft"])
def test_other_verbs(otter_here: Otter, folders: dict[str, Path], beside: Path, verb: str) -> None:
    for damaged in _sample(folders["base"], 10, seed=2):
        try_damage(otter_here, verb, damaged, folders, beside)


@pytest.mark.slow
@pytest.mark.parametrize("verb", VERBS)
def test_many_damages(otter_here: Otter, folders: dict[str, Path], beside: Path, verb: str) -> None:
    """Of every verb a third; `python -m tests.property.damaged_values_count` tries all of them."""
    sample = _sample(folders["base"], 190, seed=3)
    ended, broken = count_damages(otter_here, verb, sample, folders, beside)
    assert not broken, "\n\n".join(broken)
    # These report every change of a base under its graft, once they are done.
    assert ended["reported" if verb in ("train", "verify", "doctor") else "works"]


KNOWN: list[tuple[str, tuple[Any, ...], Any, str]] = [
    ("config.json", ("rope_scaling",), {"rope_type": "linear", "factor": "x"}, "config.json: "),
    ("tokenizer_config.json", ("bos_token",), 7, "tokenizer_config.json: bos_token is 7"),
    ("tokenizer_config.json", ("model_max_length",), ["x"], "json: model_max_length is "),
    ("tokenizer.json", ("model", "vocab", "<pad>"), {"x": 1}, "tokenizer.json"),
    ("tokenizer.json", ("version",), 7, "tokenizer.json: version"),
    ("generation_config.json", ("eos_token_id",), {"x": 1}, "generation_config.json: eos_token_id"),
    ("config.json", ("hidden_act",), "x", 'config.json: hidden_act is "x"'),
]


@pytest.mark.parametrize(("name", "path", "value", "said"), KNOWN)
def test_known_ones(
    otter_here: Otter,
    folders: dict[str, Path],
    beside: Path,
    name: str,
    path: tuple[Any, ...],
    value: Any,
    said: str,
) -> None:
    folder = shutil.copytree(folders["graft"], beside / "run")
    damage(folder, name, path, value)
    run = otter_here(*VERBS["generate"](folder, beside))
    assert run.returncode == 2 and said in run.stderr, run.stderr
