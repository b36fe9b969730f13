"""The synthetic world as files, in the forms that recipes and benchmarks read."""

import json
from pathlib import Path

from otter_cli.core.atomic import staged_folder, write_text
from otter_cli.demo.world import World

TRAIN_ROWS, TEST_ROWS = 4_000, 500


def write_world(
    out: Path, *, seed: int, train_rows: int = TRAIN_ROWS, test_rows: int = TEST_ROWS
) -> Path:
    """`preference`, `toxicity` and `text`, `.train.jsonl` and `.test.jsonl` each, and prompts.

    `prompts.jsonl` holds test prompts. OtterError when `out` exists.
    """
    train, test = World(seed, "train"), World(seed, "test")
    with staged_folder(out, sources=()) as folder:
        for world, name, rows in ((train, "train", train_rows), (test, "test", test_rows)):
            _write(folder / f"preference.{name}.jsonl", world.pairs(rows))
            _write(folder / f"toxicity.{name}.jsonl", world.labelled(rows))
            _write(folder / f"text.{name}.jsonl", [{"text": text} for text in world.texts(rows)])
        _write(folder / "prompts.jsonl", [{"prompt": prompt} for prompt in test.prompts(test_rows)])
    return out


def _write(path: Path, rows: list[dict[str, str]] | list[dict[str, str | int]]) -> None:
    write_text(path, "".join(f"{json.dumps(row)}\n" for row in rows))
