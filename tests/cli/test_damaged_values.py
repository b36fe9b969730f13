"""A value of the wrong type in any file of a checkpoint: a verb works, or names the file. It never
calls that a fault of otter's own, never hangs, and never blames a value that is sound."""

import json
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest

from tests.conftest import Otter
from tests.support.damaged_values import FILES, Damage, damage, damages
from tests.support.grafts import random_graft

Verb = Callable[[Path, Path], tuple[Any, ...]]
VERBS: dict[str, Verb] = {
    "generate": lambda folder, _: (
        *("generate", folder, "hi", "--base-changed-ok", "--max-new-tokens", "2"),
        *(["--chat"] if "chat_template" in (folder / "tokenizer_config.json").read_text() else []),
    ),
    "train": lambda folder, beside: (
        *("train", folder, "--base-changed-ok", "--recipe", beside / "recipe.yaml", "--restart"),
    ),
    "inspect": lambda folder, _: ("inspect", folder),
    "doctor": lambda folder, _: ("doctor", folder),
    "verify": lambda folder, beside: ("verify", folder, "--static", "--proof", beside / "p.json"),
    "graft": lambda folder, beside: ("graft", folder, beside / "out"),
}


@pytest.fixture(autouse=True)
def _no_bars() -> Iterator[None]:
    from transformers.utils import logging

    logging.disable_progress_bar()
    yield
    logging.enable_progress_bar()


@pytest.fixture(scope="module")
def folders(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    graft = random_graft(
        tiny_llama, tmp_path_factory.mktemp("damaged") / "g", hidden=8, heads=2, ffn=16
    )
    return {"base": tiny_llama, "graft": graft}


@pytest.fixture
def beside(tmp_path: Path) -> Path:
    rows = [{"chosen": f"good {i}", "rejected": f"bad thing {i}"} for i in range(20)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    signal = {"objective": "bradley-terry", "train": {"path": "pairs.jsonl"}}
    recipe = {"steps": 1, "batch_size": 2, "max_length": 16, "signals": {"reward": signal}}
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    return tmp_path


def _try(
    otter_here: Otter, verb: str, damaged: Damage, folders: dict[str, Path], beside: Path
) -> str:
    folder, (name, path, value) = beside / "run", damaged
    for old in (folder, beside / "out"):
        shutil.rmtree(old, ignore_errors=True)
    shutil.copytree(folders["base" if verb == "graft" else "graft"], folder)
    damage(folder, name, path, value)
    run = otter_here(*VERBS[verb](folder, beside))
    said, what = run.stdout + run.stderr, f"{verb}, {name}: {path} is {value!r}"
    assert "fault of otter" not in said and "Traceback" not in said, f"{what}\n{said}"
    if run.returncode in (0, 1):
        return "works" if run.returncode == 0 else "reported"
    assert run.returncode == 2 and "hint: " in run.stderr, f"{what}\n{said}"
    return _check_place(run.stderr, damaged, what)


def _check_place(said: str, damaged: Damage, what: str) -> str:
    name, path, value = damaged
    # An unknown family, or a size of the graft beyond the base's, is said without the file.
    named = (name, *map(str, path), "chat template", "family", "--")
    assert any(part in said.replace("--base-changed-ok", "") for part in named), f"{what}\n{said}"
    blamed = re.search(r"error: \S*?([a-z_]+\.json): (\w+) is ", said)
    if blamed and ": transformers cannot load" in said:
        # A key that contradicts the damaged one may be blamed as well: two sizes that disagree.
        assert blamed[2] in path or type(value) is int, f"{what}\n{said}"
        return "named the key" if blamed[2] in path else "named another"
    return "named the file"


def _sample(folder: Path, count: int, seed: int) -> list[Damage]:
    return Random(seed).sample(list(damages(folder)), count)


def test_every_file_is_damaged(folders: dict[str, Path]) -> None:
    counts = Counter(name for name, _, _ in damages(folders["base"]))
    assert set(counts) == set(FILES) and min(counts.values()) > 20


def test_generating(otter_here: Otter, folders: dict[str, Path], beside: Path) -> None:
    for damaged in _sample(folders["base"], 60, seed=1):
        _try(otter_here, "generate", damaged, folders, beside)


@pytest.mark.parametrize("verb", ["train", "inspect", "doctor", "verify", "graft"])
def test_other_verbs(otter_here: Otter, folders: dict[str, Path], beside: Path, verb: str) -> None:
    for damaged in _sample(folders["base"], 10, seed=2):
        _try(otter_here, verb, damaged, folders, beside)


@pytest.mark.slow
@pytest.mark.parametrize("verb", VERBS)
def test_every_damage(otter_here: Otter, folders: dict[str, Path], beside: Path, verb: str) -> None:
    ended: Counter[str] = Counter()
    for damaged in damages(folders["base"]):
        ended[_try(otter_here, verb, damaged, folders, beside)] += 1
    assert ended["works"]


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
