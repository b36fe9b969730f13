"""How often surgery was spoilt, and what became of it: the counts that the tests hold, on demand.

python -m tests.property.damaged_surgery_count --out results/surgery/robustness.json
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from otter_cli.checkpoint.folder import Checkpoint
from otter_cli.core.errors import OtterError
from otter_cli.core.provenance import provenance
from otter_cli.families.shape import base_shape
from otter_cli.graft.base_check import check_base_headers
from otter_cli.graft.config import resolve_config
from otter_cli.graft.initial_values import initial_value
from otter_cli.graft.plan import Plan
from tests.property.damaged_bases import damaged_bases
from tests.property.mutations import mutate
from tests.property.valid_folders import check_against_the_library, read_everything, write_folders
from tests.support.families import CASES

FILES, GRAFTS, BASES, KILLS, SEED = 5000, 2000, 150, 100, 20241124


def mutated_files(root: Path, count: int, seed: int = SEED) -> dict[str, int]:
    """Files spoilt at random: refused in our words, or read as the safetensors library does."""
    return _mutate(write_folders(root), count, seed, _read_as_the_library)


def mutated_grafts(base: Path, root: Path, count: int, seed: int = SEED) -> dict[str, int]:
    """The same of a Llama's folder, up to the first values of every inserted tensor."""
    folder = shutil.copytree(base, root / "llama")
    return _mutate([folder], count, seed, _plan_a_graft)


def kills(base: Path, count: int, seed: int = SEED) -> dict[str, int]:
    """Grafts that a SIGKILL ended: what was there then. In a process without torch, for a fork of
    its hundreds of megabytes and threads takes long, and forking threads is asking for trouble."""
    command = [sys.executable, "-m", "tests.property.graft_kills", str(base), str(count), str(seed)]
    child = subprocess.run(command, capture_output=True, text=True, check=False)
    assert child.returncode == 0, child.stderr
    return dict(json.loads(child.stdout))


def families(root: Path) -> list[Path]:
    """A tiny base of every family."""
    from tests.support.checkpoints import write_checkpoint

    for case in CASES:
        write_checkpoint(root / case.family, case.family, **case.config)
    return [root / case.family for case in CASES]


def _mutate(folders: list[Path], count: int, seed: int, attempt: Any) -> dict[str, int]:
    random, refused = Random(seed), 0
    for _ in range(count):
        folder = random.choice(folders)
        path = random.choice([p for p in sorted(folder.iterdir()) if _matters(p)])
        sound = path.read_bytes()
        _replace(path, mutate(path.name, sound, random))
        try:
            with np.errstate(all="ignore"):  # signalling NaN and overflow, made by chance
                attempt(folder)
        except OtterError as error:
            _check_refusal(error, folder)
            refused += 1
        # After anything else the spoilt file stays where it is, to be looked at.
        _replace(path, sound)
    return {"files": count, "refused": refused, "sound": count - refused}


def _matters(path: Path) -> bool:
    return path.name == "config.json" or "safetensors" in path.name


def _read_as_the_library(folder: Path) -> None:
    check_against_the_library(read_everything(folder))


def _plan_a_graft(folder: Path) -> None:
    base = Checkpoint.open(folder)
    shape = base_shape(base.config)
    check_base_headers(base, shape)
    plan = Plan(resolve_config(shape, hidden=8, heads=2, ffn=8), shape)
    for slot in plan.tensors:
        assert initial_value(slot, plan, base).shape == slot.shape


def _check_refusal(error: OtterError, folder: Path) -> None:
    named = (str(folder), "config.json", "family", "is not supported", "--")
    assert error.hint and any(part in error.what for part in named), error.what
    assert (error.what + error.hint).isprintable() and len(error.what) < 600, error.what


def _replace(path: Path, content: bytes) -> None:
    # Truncating a file in place makes ext4 wait for the disk, which took most of the time.
    path.unlink()
    path.write_bytes(content)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    from tests.support.checkpoints import write_checkpoint

    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        write_checkpoint(root / "base", "llama")
        record = {
            "mutated_files": mutated_files(root, FILES),
            "mutated_grafts": mutated_grafts(root / "base", root, GRAFTS),
            "damaged_bases": damaged_bases(families(root), root, 10 * BASES, SEED),
            "sigkills_of_a_graft": kills(root / "base", KILLS),
            "provenance": provenance(
                [Path(sys.executable).name, "-m", "tests.property.damaged_surgery_count"]
            ),
        }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    print(json.dumps({k: v for k, v in record.items() if k != "provenance"}, indent=2))


if __name__ == "__main__":
    main()
