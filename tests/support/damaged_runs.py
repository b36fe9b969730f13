"""Runs of verbs on a graft or base with one damaged value, and what each run must satisfy."""

import json
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

from tests.support.damaged_values import Damage, damage
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


class Run(NamedTuple):
    returncode: int
    stdout: str
    stderr: str


Runner = Callable[..., Any]


def graft_of(base: Path, folder: Path) -> Path:
    return random_graft(base, folder, hidden=8, heads=2, ffn=16)


def write_recipe(beside: Path) -> None:
    """A run of one step on ten pairs."""
    rows = [{"chosen": f"good {i}", "rejected": f"bad thing {i}"} for i in range(20)]
    (beside / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    signal = {"objective": "bradley-terry", "train": {"path": "pairs.jsonl"}}
    recipe = {"steps": 1, "batch_size": 2, "max_length": 16, "signals": {"reward": signal}}
    (beside / "recipe.yaml").write_text(json.dumps(recipe))


def try_damage(
    otter: Runner, verb: str, damaged: Damage, folders: dict[str, Path], beside: Path
) -> str:
    """The outcome of the run. Raises AssertionError if it broke a promise."""
    folder, (name, path, value) = beside / "run", damaged
    for old in (folder, beside / "out"):
        shutil.rmtree(old, ignore_errors=True)
    shutil.copytree(folders["base" if verb == "graft" else "graft"], folder)
    damage(folder, name, path, value)
    run = otter(*VERBS[verb](folder, beside))
    said, what = run.stdout + run.stderr, f"{verb}, {name}: {path} is {value!r}"
    assert "fault of otter" not in said and "Traceback" not in said, f"{what}\n{said}"
    if run.returncode in (0, 1):
        return "works" if run.returncode == 0 else "reported"
    assert run.returncode == 2 and "hint: " in run.stderr, f"{what}\n{said}"
    return _check_place(run.stderr, damaged, what)


def _check_place(said: str, damaged: Damage, what: str) -> str:
    name, path, value = damaged
    # The message about an unknown family does not name the file.
    named = (name, *map(str, path), "chat template", "family")
    assert any(part in said for part in named), f"{what}\n{said}"
    blamed = re.search(r"error: \S*?([a-z_]+\.json): (\w+) is ", said)
    if blamed and ": transformers cannot load" in said:
        # If two sizes disagree, the message may name the key that contradicts the damaged one.
        assert blamed[2] in path or type(value) is int, f"{what}\n{said}"
        return "named the key" if blamed[2] in path else "named another"
    return "named the file"


def count_damages(
    otter: Runner,
    verb: str,
    damages: Iterable[Damage],
    folders: dict[str, Path],
    beside: Path,
) -> tuple[Counter[str], list[str]]:
    """Counts of the outcomes, and every broken promise."""
    ended, broken = Counter[str](), list[str]()
    for damaged in damages:
        try:
            ended[try_damage(otter, verb, damaged, folders, beside)] += 1
        except AssertionError as error:
            ended["broke a promise"] += 1
            broken.append(str(error))
    return ended, broken
