"""Small runs: data with something to learn, and grafts of a tiny base to learn it."""

import json
import math
import os
import random
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import yaml

from otter_cli.training.loop import TrainingRun
from otter_cli.training.recipe import Recipe, load_recipe
from tests.support.grafts import graft_for

POLITE, RUDE = ("thanks", "please", "lovely"), ("idiot", "stupid", "rubbish")


def write_data(folder: Path, rows: int = 64, seed: int = 0) -> None:
    """pairs.jsonl, labelled.jsonl and texts.jsonl: a rude word decides every label."""
    draw = random.Random(seed)

    def sentence(words: Sequence[str]) -> str:
        filler = "".join(draw.choice("abcdefgh ") for _ in range(draw.randint(2, 14)))
        return f"{filler} {draw.choice(words)}"

    pairs = [{"chosen": sentence(POLITE), "rejected": sentence(RUDE)} for _ in range(rows)]
    labelled = [
        {"text": sentence(RUDE if i % 2 else POLITE), "toxicity": i % 2} for i in range(rows)
    ]
    texts = [{"text": draw.choice("abc") * 3 + "xyz" * 8} for _ in range(rows)]
    for name, lines in (("pairs", pairs), ("labelled", labelled), ("texts", texts)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


REWARD = {"objective": "bradley-terry", "train": {"path": "pairs.jsonl"}, "held_out": 0.2}
TOXICITY = {
    "objective": "classification", "train": {"path": "labelled.jsonl"}, "held_out": 0.2
}  # fmt: skip
FUTURE = {"objective": "future-tokens", "train": {"path": "texts.jsonl"}, "held_out": 0.2}


def write_recipe(folder: Path, signals: dict[str, Any] | None = None, **settings: Any) -> Path:
    """A recipe beside the data that `write_data` writes there."""
    values = {
        "steps": 6,
        "batch_size": 8,
        "max_length": 32,
        "learning_rate": 0.01,
        "save_every": 2,
        "signals": signals or {"reward": REWARD},
        **settings,
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def small_recipe(folder: Path, signals: dict[str, Any] | None = None, **settings: Any) -> Recipe:
    write_data(folder)
    return load_recipe(write_recipe(folder, signals, **settings))


def small_graft(base: Path, out: Path, *signals: str, **options: Any) -> Path:
    sizes = {"hidden": 8, "heads": 2, "ffn": 8, **options}
    return graft_for(base, out, signals=signals or ("reward",), **sizes)


def softplus(x: float) -> float:
    return math.log1p(math.exp(x))


@contextmanager
def ctrl_c_in_step(number: int) -> Iterator[None]:
    """A real SIGINT while step `number` (from 1) is taken; the block must end by it."""
    take_step = TrainingRun.take_step

    def interrupted(run: TrainingRun) -> dict[str, Any]:
        if run.step == number - 1:
            os.kill(os.getpid(), signal.SIGINT)
        return take_step(run)

    with mock.patch.object(TrainingRun, "take_step", interrupted), pytest.raises(KeyboardInterrupt):
        yield
